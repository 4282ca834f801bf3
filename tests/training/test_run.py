"""The loop: what it learns, keeps, stops at, and how it goes on."""

import json
import platform
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs as tiny
import torch

from dne_lab.core.config import Recipe
from dne_lab.core.errors import LabError
from dne_lab.measure import metrics
from dne_lab.models import products
from dne_lab.training.position import Clock, Cursor, Position
from dne_lab.training.progress import Terminated
from dne_lab.training.run import Run
from dne_lab.training.step import Optimisation


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def run(folder: Path | None = None, method: str = "tiny", **changes: Any) -> Run:
    return Run(tiny.settings(method, **changes), tiny.stream(), folder, device="cpu", progress=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run") / "whole"
    run(folder).train()
    return folder


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, action: Any) -> None:
    """Does something in the middle of the ``number``-th step from now."""
    count = 0
    original = Optimisation.step

    def step(self: Optimisation, rate: float) -> None:
        nonlocal count
        count += 1
        if count == number:
            action()
        original(self, rate)

    monkeypatch.setattr(Optimisation, "step", step)


def test_a_stage_without_shuffling_shows_the_images_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, list[int]] = {}
    stages, losses = tiny.Tiny.stages, tiny.Tiny.losses

    def unshuffled(self: Any, task: Any) -> Any:
        return [replace(stage, shuffle=stage.name != "tune") for stage in stages(self, task)]

    def watched(self: Any, batch: Any, task: Any, stage: Any) -> Any:
        if task.number == 2:
            shown.setdefault(stage.name, []).extend(batch.index.tolist())
        return losses(self, batch, task, stage)

    monkeypatch.setattr(tiny.Tiny, "stages", unshuffled)
    monkeypatch.setattr(tiny.Tiny, "losses", watched)
    one = run()
    one.next_task()
    one.next_task()
    balanced = one.memory.balanced(5).tolist()
    assert shown["tune"] == balanced * 2  # two epochs, class by class
    first = shown["learn"][: len(shown["learn"]) // 4]
    assert first != shown["learn"][len(first) : 2 * len(first)] and sorted(first) != first


def same_weights(one: Run, other: Run) -> bool:
    mine, theirs = one.method.state_dict(), other.method.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_run_leaves_everything_that_a_number_needs(whole: Path) -> None:
    names = {"config.json", "record.json", "curves.csv", "predictions.npz", "last.safetensors", "data.safetensors"}
    assert {file.name for file in whole.iterdir()} == names | {f"task_0{number}.safetensors" for number in (1, 2, 3)}
    record = json.loads((whole / "record.json").read_text())
    with np.load(whole / "predictions.npz", allow_pickle=False) as file:
        assert all(file[name].dtype == np.int16 for name in file.files)
        pairs = [(file[f"task_0{t}/labels"], file[f"task_0{t}/classifier"]) for t in (1, 2, 3)]
        means = [(file[f"task_0{t}/labels"], file[f"task_0{t}/nme"]) for t in (1, 2, 3)]
        assert sorted(file["task_02/labels"].tolist()) == np.arange(5).repeat(6).tolist()
    assert record["accuracy"] == metrics.accuracy_matrix(pairs, tiny.TASKS)
    assert record["LA"] == metrics.measure(pairs, tiny.TASKS)["LA"]
    assert record["other_predictions"]["nme"]["seen_accuracy"] == metrics.seen_accuracy(means, tiny.TASKS)
    assert record["LA"] > 30  # seven classes: 14 by guessing
    assert record["memory"] == {
        "budget": 20, "policy": "shared", "stored": 14, "scope": "run", "stored_by_task": [18, 20, 14],
    }  # fmt: skip
    made_with = (record["python"], record["numpy"], record["platform"].partition(", ")[0])
    assert made_with == (platform.python_version(), np.__version__, platform.platform())
    assert record["threads"] == torch.get_num_threads() and record["device"] == "cpu"
    assert record["class_order"] == list(tiny.ORDER) and record["finished"] and record["tasks"] == [3, 2, 2]
    # experts of 16 x 5 + 5, a norm of 10, a classifier of (5 t + 1) x classes
    assert record["params"]["trainable_by_task"] == [95 + 18, 95 + 55, 95 + 112]
    assert record["params"]["total"] == 3 * 95 + 112
    lines = (whole / "curves.csv").read_text().splitlines()
    assert lines[0] == "task,stage,epoch,lr,classification,size" and len(lines) == 1 + 5 + 7 + 7
    assert lines[1].startswith("1,warm,1,") and lines[1].endswith(",")  # no term "size" in task 1
    assert record["timing"]["seconds"] == pytest.approx(sum(record["timing"]["by_task"]))
    epochs = record["timing"]["last_epoch"]
    assert [list(stages) for stages in epochs] == [["warm", "learn"]] + [["warm", "learn", "tune"]] * 2
    for stages, seconds in zip(epochs, record["timing"]["by_task"], strict=True):
        assert 0 < sum(stages.values()) < seconds


def test_next_task_stops_behind_a_task_and_train_goes_on(whole: Path) -> None:
    stepped = run()
    stepped.next_task()
    assert stepped.cursor == Cursor(2) and len(stepped.record.seen_accuracy) == 1 and not stepped.record.finished
    stepped.next_task()
    stepped.train()
    stepped.train()  # nothing is left to do
    assert stepped.finished and same_weights(stepped, Run.open(whole, tiny.stream(), device="cpu"))


def test_stopping_after_seconds_any_number_of_times_changes_nothing(tmp_path: Path) -> None:
    short: dict[str, Any] = {"learn.epochs": 1, "tune.epochs": 1}
    run(tmp_path / "whole", **short).train()
    for _ in range(200):
        part = run(tmp_path / "run", **short)
        if part.finished:
            break
        part.train(seconds=0)
    assert part.finished and part.state.position.timing["resumed"] > 40
    assert tiny.content(tmp_path / "run") == tiny.content(tmp_path / "whole")


@pytest.mark.skipif(not products.available(), reason="this torch has no oneDNN product beside MKL")
def test_a_run_whose_products_are_onednns_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LEAST", dict.fromkeys(products.CHOICES, 1)), ("FEWEST_ROWS", 1), ("NARROWEST", 1)):
        monkeypatch.setattr(products, name, value)
    monkeypatch.setattr(products, "choose", lambda: products.ALL)
    small = {
        "learn": {"epochs": 1, "batch": 8, "augment": []},
        "tune": {"epochs": 1},
        "network": {"patch": 2, "depth": 2, "heads": [2, 1], "head_width": 8},
    }

    def learn(name: str, by: str, seconds: float | None = None) -> Run:
        monkeypatch.setattr(products, "choose", lambda: by)
        made = Run(tiny.settings("dne", **small), tiny.stream(), tmp_path / name, device="cpu", progress=False)
        made.train(seconds)
        return made

    assert learn("whole", products.ALL).record.products == products.ALL
    learn("stopped", products.ALL, seconds=0.0)
    while not learn("stopped", products.MKL, seconds=0.5).finished:  # as if a later process measured otherwise
        pass
    assert tiny.content(tmp_path / "stopped") == tiny.content(tmp_path / "whole")
    learn("plain", products.MKL)
    assert tiny.content(tmp_path / "plain") != tiny.content(tmp_path / "whole")


def test_what_a_run_began_with_is_gone_on_with_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "choose", lambda: products.ROWS)
    run(tmp_path).train(seconds=0)
    monkeypatch.setattr(products, "choose", lambda: products.MKL)
    monkeypatch.setattr(products, "available", lambda: True)
    run(tmp_path).train(seconds=0)
    assert run(tmp_path).state.position.products == products.ROWS
    monkeypatch.setattr(products, "available", lambda: False)
    with pytest.warns(UserWarning, match="onednn-rows"):
        run(tmp_path).train(seconds=0)
    run(tmp_path).train()  # said once
    assert run(tmp_path).record.products == "onednn-rows+mkl"


@pytest.mark.parametrize("step", [1, 9, 20, 21, 50, 56, 93])
def test_ctrl_c_leaves_a_whole_run_that_goes_on_exactly(
    step: int, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = run(tmp_path / "run")
    handler = signal.getsignal(signal.SIGINT)
    at_step(monkeypatch, step, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert signal.getsignal(signal.SIGINT) is handler
    assert not stopped.method.training
    images = stopped.stream.test_images(5).images
    before = stopped.method.state_dict()["classifier.weight"].clone()
    with torch.no_grad():
        assert stopped.method.predict(images)["classifier"].isfinite().all()  # looking at it does no harm
    elsewhere = run(tmp_path / "run")  # what another process would find
    assert elsewhere.cursor == stopped.cursor and same_weights(elsewhere, stopped)
    assert torch.equal(before, stopped.method.state_dict()["classifier.weight"])
    stopped.train()
    assert tiny.content(tmp_path / "run") == tiny.content(whole)


def test_ctrl_c_in_memory_goes_on_exactly(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = run()
    at_step(monkeypatch, 42, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        stopped.next_task()
        stopped.next_task()
    assert stopped.cursor.step > 0
    stopped.train()
    assert same_weights(stopped, Run.open(whole, tiny.stream(), device="cpu"))


def test_sigterm_saves_and_says_so(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = run(tmp_path / "run")
    at_step(monkeypatch, 47, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Terminated):
        stopped.train()
    run(tmp_path / "run").train()
    assert tiny.content(tmp_path / "run") == tiny.content(whole)


def test_a_second_ctrl_c_stops_at_once_and_the_last_checkpoint_goes_on(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    stopped, lost = run(tmp_path / "run"), run()
    with monkeypatch.context() as patch:
        at_step(patch, 33, twice)
        with pytest.raises(KeyboardInterrupt):
            stopped.train()
    assert stopped.state.half_changed
    stopped.train()
    assert tiny.content(tmp_path / "run") == tiny.content(whole)
    at_step(monkeypatch, 33, twice)
    with pytest.raises(KeyboardInterrupt):
        lost.train()
    with pytest.raises(LabError, match="in memory only"):
        lost.train()


def test_training_works_outside_the_main_thread(whole: Path) -> None:
    trained = run()
    thread = threading.Thread(target=trained.train)
    thread.start()
    thread.join()
    assert trained.finished and same_weights(trained, Run.open(whole, tiny.stream(), device="cpu"))


@pytest.mark.parametrize("step", [2, 33])
def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(step: int, tmp_path: Path) -> None:
    poisoned = run(tmp_path / "run", **{"options.poison": step})
    with pytest.raises(LabError, match="loss 'classification' is nan"):
        poisoned.train()
    if step == 33:  # after task 1, at whose end there is a checkpoint
        again = run(tmp_path / "run", **{"options.poison": step})
        assert again.cursor == Cursor(2)
        assert all(value.isfinite().all() for value in again.method.state_dict().values())
    else:
        assert {file.name for file in (tmp_path / "run").iterdir()} == {"config.json", "data.safetensors"}


def test_the_message_of_a_nan_names_the_step() -> None:
    with pytest.raises(LabError) as error:
        run(**{"options.poison": 6}).train()
    # 33 images in batches of 8 are 4 steps (the last image alone is left out): step 6 is the second of "learn"
    assert "task 1, stage learn, epoch 1, step 2" in str(error.value)


def test_weights_that_are_not_finite_are_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = run(tmp_path / "run")
    broken.next_task()
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    broken.train(seconds=0)
    good = (tmp_path / "run" / "last.safetensors").read_bytes()
    assert good != before
    with torch.no_grad():
        broken.method.classifier.weight[0] = torch.inf
    with pytest.raises(LabError, match="NaN or Inf"):
        broken.save()
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == good


def test_batches_of_an_epoch() -> None:
    assert [Recipe(batch=8).steps(n) for n in (0, 1, 7, 8, 9, 10, 16, 17)] == [0, 1, 1, 1, 1, 2, 2, 2]
    assert Recipe(batch=1).steps(5) == 5


@pytest.mark.parametrize("method", ["tiny-alone", "tiny-joint"])
def test_methods_without_memory(method: str, tmp_path: Path) -> None:
    trained = run(tmp_path / "run", method)
    trained.train()
    record = trained.record
    assert record.memory["stored"] == 0 and not trained.memory.exemplars
    assert record.tasks == ([7] if method == "tiny-joint" else [3, 2, 2]) and record.joint == (method == "tiny-joint")


def test_exemplars_keep_the_promise(whole: Path) -> None:
    opened = Run.open(whole, tiny.stream(), device="cpu")
    assert sorted(opened.memory.exemplars) == list(range(7))
    assert {len(numbers) for numbers in opened.memory.exemplars.values()} == {2}
    for rank, numbers in opened.memory.exemplars.items():
        assert set(numbers) <= set(opened.stream.index("train", range(rank, rank + 1)).tolist())


def test_the_method_as_it_was_after_a_task(whole: Path) -> None:
    stepped = run()
    images = stepped.stream.test_images(7).images
    expected = []
    for _ in range(3):
        stepped.next_task()
        with torch.no_grad():
            expected.append(stepped.method.predict(images)["nme"])
    for source in (stepped, Run.open(whole, tiny.stream(), device="cpu")):
        for number in (1, 2, 3):
            with torch.no_grad():
                assert torch.equal(source.model_at(number).predict(images)["nme"], expected[number - 1])
    for wrong in (4, 0, "1", True, 1.0, None, np.array([1, 2])):
        with pytest.raises(LabError, match="has finished 3 of 3"):
            stepped.model_at(wrong)
    assert torch.equal(stepped.model_at(np.int64(2)).predict(images)["nme"], expected[1])


def test_another_configuration_is_refused_and_named(whole: Path) -> None:
    before = tiny.content(whole)
    with pytest.raises(LabError, match=r"learn\.lr \(0\.05 there, 0\.5 here\)"):
        run(whole, **{"learn.lr": 0.5})
    with pytest.raises(LabError, match=r"method \(tiny there, tiny-other here\)"):
        run(whole, "tiny-other")
    with pytest.raises(LabError, match="belongs to other data"):
        Run(tiny.settings(), tiny.stream(shift=1), whole, device="cpu")
    assert tiny.content(whole) == before


def test_a_stream_of_other_tasks_is_refused() -> None:
    with pytest.raises(LabError, match=r"data\.tasks"):
        run(**{"data.tasks": "4,3"})


def test_one_process_at_a_time_trains_in_a_folder(tmp_path: Path) -> None:
    from dne_lab.core.folder_lock import alone_in

    with alone_in(tmp_path / "run"), pytest.raises(LabError, match="in use by another process"):
        run(tmp_path / "run").train()
    run(tmp_path / "run").next_task()


def test_the_seconds_of_an_epoch_are_those_of_a_whole_one(tmp_path: Path) -> None:
    parts = run(tmp_path)
    while not parts.finished:
        parts.train(seconds=0)  # a step at a time: every epoch has a break in it
    assert "last_epoch" not in parts.record.timing and parts.record.timing["by_purpose"]["learning"] > 0


def test_an_epoch_holds_its_checkpoints_and_ends_with_a_break(monkeypatch: pytest.MonkeyPatch) -> None:
    state, now = Position(), iter([0.0, 1.0, 3.0, 7.0, 15.0, 15.0, 31.0, 63.0])
    monkeypatch.setattr("dne_lab.training.position.time.perf_counter", lambda: next(now))
    clock = Clock()
    clock.spend(state, "preparation")
    clock.spend(state, "learning")  # a checkpoint in mid-epoch
    clock.spend(state, "learning", "learn")
    assert state.timing["last_epoch"] == [{"learn": 6.0}]
    clock.spend(state, "learning")
    clock.start()
    clock.spend(state, "learning", "learn")  # what is left of an epoch
    assert state.timing["last_epoch"] == [{"learn": 6.0}]
    clock.spend(state, "learning", "learn")
    assert state.timing["last_epoch"] == [{"learn": 32.0}] and state.timing["seconds"] == 63.0


def test_features_that_are_infinite_are_a_diverged_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights may still be finite after the last step."""
    made = run(tmp_path / "run")
    right = type(made.method).features
    wrong = lambda self, images: right(self, images) * (1 if self.training else torch.inf)  # noqa: E731
    monkeypatch.setattr(type(made.method), "features", wrong)
    with pytest.raises(LabError, match=r"diverged.*learn\.lr"):
        made.next_task()
    monkeypatch.undo()
    run(tmp_path / "run").train()


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
])  # fmt: skip
def test_a_step_that_does_not_fit_into_memory_is_a_sentence_and_nothing_is_lost(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run(tmp_path / "run")
    made.next_task()

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(type(made.method), "losses", fail)
    with pytest.raises(LabError, match=r"out of memory at task 2.*learn\.batch"):
        made.next_task()
    monkeypatch.setattr(type(made.method), "losses", lambda *_: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        made.next_task()
    monkeypatch.undo()
    made.train()
    assert made.finished
