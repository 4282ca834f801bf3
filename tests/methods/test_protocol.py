"""iCaRL, PODNet, DER, FOSTER and DyTox fit the protocol and the loop as they are, without a special case.

In a few lines each, and iCaRL, PODNet, DyTox and replay as the package has them.
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import protocol_methods
import pytest
import torch
from protocol_methods import ALL, BASELINES, METHODS, TASKS, WIDTH
from safetensors.torch import load_file
from torch import Tensor

from dne_lab.data.stream import Batch, Task
from dne_lab.measure import cost
from dne_lab.methods.base import Method, Stage
from dne_lab.training import archive
from dne_lab.training.position import Cursor
from dne_lab.training.run import Run
from dne_lab.training.step import Optimisation

VISIBLE = set(Method.registry)  # as other test modules find it
Tensors = dict[str, Tensor]
TUNED = [["classifier"], *[["classifier", "before_tuning"]] * 2]  # what is predicted where tasks 2 and 3 have a stage 2
each_method = pytest.mark.parametrize("name", ALL)


@dataclass
class Passed:
    """What a stage was at its start (entered and initialised) and at its end."""

    begin: Tensors
    optimizer: Tensors
    trainable: set[str]
    end: Tensors = field(default_factory=dict)
    optimizer_end: Tensors = field(default_factory=dict)

    @property
    def changed(self) -> set[str]:
        return {name for name in self.begin if not torch.equal(self.begin[name], self.end[name])}


@dataclass
class Whole:
    """A run that was never interrupted, and what was seen between its steps."""

    run: Run
    stages: dict[tuple[int, str], Passed]


def copied(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def start(name: str, folder: Path | None = None) -> Run:
    return Run(protocol_methods.settings(name), protocol_methods.stream(), folder, "cpu", 3600, progress=False)


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """The tiny methods are in the registry of this module only."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Method, "registry", {**Method.registry, **METHODS})
        yield


@pytest.fixture(scope="module")
def whole(registered: None) -> Iterator[Any]:
    """Trains a method once."""
    found: dict[str, Whole] = {}

    def get(name: str) -> Whole:
        if name not in found:
            found[name] = watched(name)
        return found[name]

    yield get


def watched(name: str) -> Whole:
    """Trains a method without interruption and looks at it before the first and after the last step of each stage."""
    stages: dict[tuple[int, str], Passed] = {}
    original = Run._step

    def seen(run: Run) -> tuple[Tensors, Tensors]:
        assert run.state.optimisation is not None
        return copied(run.method.state_dict()), copied(run.state.optimisation.state())

    def step(self: Run, task: Task, stage: Stage, *rest: Any) -> None:
        here, last = (task.number, stage.name), self.cursor[2:] == last_step(self, stage)
        if here not in stages:
            stages[here] = Passed(*seen(self), set(self.method.parameters_to_train()))
        original(self, task, stage, *rest)
        if last:
            stages[here].end, stages[here].optimizer_end = seen(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_step", step)
        run = start(name)
        run.train()
    return Whole(run, stages)


def last_step(run: Run, stage: Stage) -> tuple[int, int]:
    """Epoch and step, from 0, with which a stage of the current task ends."""
    size = run.state.size(run.stream.task(run.cursor.task), stage)
    return stage.recipe.epochs - 1, stage.recipe.steps(size) - 1


def under(names: set[str]) -> set[str]:
    """The parts of the method that hold these parameters: "extractors.1", "classifier"."""
    parts = [name.split(".") for name in names]
    return {".".join(p[:2]) if len(p) > 1 and (p[1].isdigit() or p[0] != "classifier") else p[0] for p in parts}


@each_method
def test_exactly_what_trains_changes(name: str, whole: Any) -> None:
    method = whole(name).run.method
    for where, passed in whole(name).stages.items():
        norms = {n.rpartition(".")[0] for n in passed.trainable}  # running statistics move where weights train
        statistics = {n for n in passed.begin if n.rpartition(".")[2].startswith(("running_", "num_batches"))}
        moved = {n for n in statistics if n.rpartition(".")[0] in norms}
        assert passed.changed == passed.trainable | moved, where
    assert not method.training and not any(module.training for module in method.modules())


@dataclass
class Resumed:
    """A run in a folder that was stopped in the middle and after the last step of every stage."""

    run: Run
    folder: Path
    stopped: list[Cursor]
    initialised: list[tuple[int, str]]


@pytest.fixture(scope="module")
def resumed(registered: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Trains a method once, with interruptions."""
    found: dict[str, Resumed] = {}

    def get(name: str) -> Resumed:
        if name not in found:
            found[name] = stopped_everywhere(name, tmp_path_factory.mktemp(name))
        return found[name]

    yield get


def stopped_everywhere(name: str, folder: Path) -> Resumed:
    stopped: list[Cursor] = []
    initialised: list[tuple[int, str]] = []
    original, initialise = Optimisation.step, ALL[name].initialise

    def interrupted(self: Optimisation, rate: float) -> None:
        stage = run.method.stages(run.stream.task(run.cursor.task))[run.cursor.stage]
        if run.cursor not in stopped and run.cursor[2:] in ((0, 2), last_step(run, stage)):
            stopped.append(run.cursor)
            signal.raise_signal(signal.SIGINT)
        original(self, rate)

    def counted(self: Method, task: Task, stage: Stage, batches: Iterator[Batch]) -> None:
        if self is run.method:  # not the copies whose training FLOPs are counted at the end
            initialised.append((task.number, stage.name))
        initialise(self, task, stage, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Optimisation, "step", interrupted)
        patch.setattr(ALL[name], "initialise", counted)
        run = start(name, folder)
        while not run.finished:
            try:
                run.train()
            except KeyboardInterrupt:
                run = start(name, folder)  # what another process would find
                assert run.cursor == stopped[-1]._replace(step=stopped[-1].step + 1)
    return Resumed(run, folder, stopped, initialised)


@each_method
def test_interrupted_in_every_stage_it_ends_as_if_it_had_not_been(name: str, whole: Any, resumed: Any) -> None:
    expected: Run = whole(name).run
    run: Run = resumed(name).run
    assert len(resumed(name).stopped) == 2 * len(whole(name).stages)  # in the middle of each, and after its last step
    assert resumed(name).initialised == list(whole(name).stages)  # once each, although resuming replays `enter`
    weights = run.method.state_dict()
    assert weights.keys() == expected.method.state_dict().keys()
    for key, value in expected.method.state_dict().items():
        assert torch.equal(weights[key], value), key
    mine, theirs = ({**vars(r.record), "timing": None} for r in (run, expected))
    assert mine == theirs and run.curves == expected.curves
    # After each task the method can be had back, and predicts what it predicted then.
    images = run.stream.images("test", run.stream.index("test", range(run.stream.classes)))
    for number, names in enumerate(run.state.position.predicted, start=1):
        seen = run.stream.index("test", range(run.stream.task(number).new.stop))
        with torch.no_grad():
            found = run.method_at(number).predict(images[: len(seen)])
        assert next(iter(found)) == names[0] and set(found) <= set(names)  # a teacher trains, and is not kept
        for kind, scores in found.items():
            assert scores.argmax(1).tolist() == run.predictions[f"task_{number:02d}/{kind}"].tolist()


@each_method
def test_it_learns(name: str, whole: Any) -> None:
    record = whole(name).run.record
    for number, row in enumerate(record.accuracy, start=1):
        assert row[-1] > 2 * 100 / sum(TASKS[:number])  # the newest classes among all seen


@each_method
def test_the_recorded_cost_is_that_of_the_network_that_is_kept(name: str, whole: Any) -> None:
    run: Run = whole(name).run
    assert run.record.flops_spent == cost.flops(run.method.compute, run.stream.shape)


@pytest.mark.parametrize("name", BASELINES)
def test_the_finished_model_alone_predicts_the_same(name: str, resumed: Any, tmp_path: Path) -> None:
    run: Run = resumed(name).run
    file = archive.export_model(resumed(name).folder, tmp_path / "model.safetensors")
    kept = sum(tensor.numel() for tensor in load_file(file).values())
    assert kept < 1.1 * cost.count(run.method.model) + 1000  # no teacher
    images = run.stream.images("test", run.stream.index("test", range(run.stream.classes)))
    opened = Run.open(file, run.stream, device="cpu", progress=False)
    with torch.no_grad():
        one, other = run.method.predict(images), opened.method.predict(images)
    assert list(other) == [kind for kind in one if kind != "teacher"]
    assert all(torch.equal(one[kind], other[kind]) for kind in other)


def test_icarl(whole: Any, tmp_path: Path) -> None:
    run, stages = whole("tiny-icarl").run, whole("tiny-icarl").stages
    assert run.state.position.predicted == [["nme", "classifier"]] * 3
    assert run.record.other_predictions.keys() == {"classifier"}
    for number in (2, 3):
        passed, before = stages[number, "learn"], stages[number - 1, "learn"]
        assert under(passed.trainable) == {"network.encoder", "network.classifier"}
        for key, value in before.end.items():  # the teacher is the network as the task before left it
            if key.startswith("network."):
                assert torch.equal(passed.end[key.replace("network.", "teacher.")], value)
    stepped = start("tiny-icarl", tmp_path)
    stepped.next_task()
    means = stepped.method.means.clone()
    torch.testing.assert_close(means.norm(dim=1), torch.ones(TASKS[0]))
    assert torch.equal(start("tiny-icarl", tmp_path).method.means, means)
    stepped.train(seconds=0)  # in task 2
    assert torch.equal(start("tiny-icarl", tmp_path).method.means, torch.cat([means, torch.zeros(TASKS[1], WIDTH)]))
    assert {row["task"] for row in run.curves if "distillation" in row} == {2, 3}


def test_podnet(whole: Any) -> None:
    run, stages = whole("tiny-podnet").run, whole("tiny-podnet").stages
    assert list(stages) == [(1, "learn"), (2, "learn"), (2, "tune"), (3, "learn"), (3, "tune")]
    proxies = [f"classifier.tasks.{number}" for number in range(3)]
    for number in (1, 2, 3):
        passed = stages[number, "learn"]
        assert {n for n in passed.trainable if n.startswith("classifier")} == {proxies[number - 1], "classifier.scale"}
        assert any(n.startswith("encoder") for n in passed.trainable)
        norms = passed.begin[proxies[number - 1]].norm(dim=2)  # means of unit features: set by data
        assert bool((norms > 0.1).all()) and bool((norms <= 1 + 1e-6).all())
        if number > 1:
            assert stages[number, "tune"].trainable == {*proxies[:number], "classifier.scale"}
            assert not stages[number, "tune"].optimizer
    assert {row["stage"] for row in run.curves if "pod_spatial" in row} == {"learn"}
    assert run.state.position.predicted == TUNED and not run.record.other_predictions


def test_der(whole: Any) -> None:
    stages = whole("tiny-der").stages
    assert list(stages)[:5] == [(1, "warm-up"), (1, "learn"), (2, "warm-up"), (2, "learn"), (2, "tune")]
    for number in (1, 2, 3):
        warm, learn = stages[number, "warm-up"], stages[number, "learn"]
        newest = {f"extractors.{number - 1}", "classifier", *(["auxiliary"] if number > 1 else [])}
        assert {n.split(".")[0] if n[0] != "e" else n[:12] for n in warm.trainable} == newest
        assert warm.trainable == learn.trainable
        # The optimiser goes on: not its learning rate only, but every momentum, bit for bit.
        assert not warm.optimizer and learn.optimizer.keys() == warm.optimizer_end.keys()
        assert len(learn.optimizer) == len(learn.trainable)
        for key, value in warm.optimizer_end.items():
            assert torch.equal(learn.optimizer[key], value), key
        reset = {n for n in warm.end if not torch.equal(warm.end[n], learn.begin[n])}
        assert reset == {n for n in warm.end if n.startswith(("classifier", "auxiliary"))}
        if number > 1:
            tune = stages[number, "tune"]
            assert tune.trainable == {"classifier.weight"} and not tune.optimizer
            assert not torch.equal(learn.end["classifier.weight"], tune.begin["classifier.weight"])
            old, copy = (f"extractors.{k}.out.weight" for k in (number - 2, number - 1))
            assert torch.equal(warm.begin[old], warm.begin[copy]) and not torch.equal(warm.end[old], warm.end[copy])
    kept = sum(cost.count(module) for module in whole("tiny-der").run.method.network_to_keep())
    assert whole("tiny-der").run.record.params["total"] == kept == 3 * cost.count(protocol_methods.Encoder()) + 3 * 84


def test_foster(whole: Any) -> None:
    run, stages = whole("tiny-foster").run, whole("tiny-foster").stages
    assert list(stages) == [(1, "learn"), (2, "boost"), (2, "compress"), (3, "boost"), (3, "compress")]
    assert run.state.position.predicted == [["student"], ["student", "teacher"], ["student", "teacher"]]
    other = run.record.other_predictions["teacher"]["seen_accuracy"]
    assert len(other) == 3 and other[0] == run.record.seen_accuracy[0]  # no teacher in task 1: what is reported
    for number, quota, old in ((2, 28 // 3, 3), (3, 28 // 5, 5)):
        boost, compress = stages[number, "boost"], stages[number, "compress"]
        assert under(boost.trainable) == {"boost.encoder", "boost.classifier", "teacher.weight", "teacher.bias"}
        assert under(compress.trainable) == {"student.encoder", "student.classifier"}
        assert boost.begin["counts"].tolist() == compress.end["counts"].tolist() == [quota] * old + [14] * 2
        before = stages[number - 1, "learn" if number == 2 else "compress"].end
        for key, value in before.items():  # the old branch is the student of the task before
            if key.startswith("student."):
                assert torch.equal(boost.end[key.replace("student.", "old.")], value)
        assert torch.equal(compress.begin["student.classifier.weight"][:old], before["student.classifier.weight"])
        assert not compress.optimizer
    assert run.record.params["total"] == cost.count(run.method.student)


def test_dytox(whole: Any) -> None:
    run, stages = whole("tiny-dytox").run, whole("tiny-dytox").stages
    encoder = {"network.patches", "network.places", "network.mix", "network.query", "network.key", "network.value"}
    for number in (1, 2, 3):
        learn = stages[number, "learn"].trainable
        parts = {n for n in learn if "tokens" in n or "classifiers" in n}
        assert all(f".{number - 1}" in n for n in parts) and f"network.tokens.{number - 1}" in parts
        assert encoder <= under(learn) and ("divergence.weight" in learn) == (number > 1)
        if number > 1:
            tune = stages[number, "tune"]
            assert under(tune.trainable) == {"network.tokens", "network.classifiers"}
            assert {f"network.tokens.{k}" for k in range(number)} <= tune.trainable
            assert not any(n.startswith(("divergence", "teacher")) for n in tune.begin)
            assert not tune.optimizer
    assert run.state.position.predicted == TUNED
    assert {row["stage"] for row in run.curves if "divergence" in row} == {"learn"}


def test_other_modules_do_not_see_them() -> None:
    assert not VISIBLE & set(METHODS) and "dne" in VISIBLE
