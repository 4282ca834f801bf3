"""Network expansion: the objective against NumPy by hand, and real optimiser steps on random images."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from dne_lab.commands import bench
from dne_lab.core import config, presets
from dne_lab.core.errors import LabError
from dne_lab.data.stream import Batch, ClassStream, Task
from dne_lab.measure import cost
from dne_lab.methods import create
from dne_lab.methods.base import Stage
from dne_lab.methods.expansion import Expansion
from dne_lab.models.expandable import Output
from dne_lab.models.variants import Variant

PAPER_LOSS = {"classification": "ce", "reduction": "batch"}
AUTHORS_LOSS = {"classification": "bce", "reduction": "element"}


class Everything(Expansion):
    """A user's own variant, as it would stand in a notebook cell (without a name: not registered)."""

    variant = Variant("everything", "all", "task")


METHODS = ("ia", "sta", "dne", "progressive", "everything")


def configuration(method: str = "dne", loss: Any = AUTHORS_LOSS, **network: Any) -> config.Config:
    """A tiny run in one of the two styles."""
    tree: dict[str, Any] = {
        "method": method,
        "network": {"patch": 4, "depth": 2, "head_width": 4, "ratio": 2, "heads": [2, 1], **network},
        "loss": dict(loss),
        "memory": {"budget": 100},
    }
    return config.from_dict(tree)


def expansion(stream: ClassStream, *arguments: Any, **network: Any) -> Expansion:
    """The method of `configuration`."""
    chosen = configuration(*arguments, **network)
    method = Everything(chosen, stream) if chosen.method == "everything" else create(chosen, stream)
    assert isinstance(method, Expansion)
    return method


def some(stream: ClassStream, task: Task, count: int = 12) -> Batch:
    """Training images of all classes seen, in a fixed random order."""
    index = stream.index("train", range(task.new.stop))
    return stream.batch("train", index[torch.randperm(len(index), generator=torch.Generator().manual_seed(0))[:count]])


def log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean([-log_softmax(logits)[i, label] for i, label in enumerate(labels)]))


def binary_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    total = 0.0
    for i, label in enumerate(labels):
        for c in range(logits.shape[1]):
            p = 1 / (1 + np.exp(-logits[i, c]))
            total -= np.log(p) if c == label else np.log(1 - p)
    return float(total / logits.size)


@pytest.mark.parametrize("style", ["paper", "authors"])
def test_objective_by_hand(style: str) -> None:
    """Task 3 of 2 + 1 + 2 classes: l = 3/5, task expertise among [any old class, rank 3, rank 4]."""
    method = expansion(tiny.tiny_stream(), "ia", PAPER_LOSS if style == "paper" else AUTHORS_LOSS)
    task = method.stream.task(3)
    assert (task.old, task.new) == (range(3), range(3, 5))
    rng = np.random.default_rng(0)
    logits, old, expertise = (rng.normal(size=(6, n)).astype(np.float32) for n in (5, 3, 3))
    labels = np.array([0, 1, 2, 3, 4, 3])
    output = Output(torch.from_numpy(logits), torch.from_numpy(old), torch.from_numpy(expertise), [])
    terms = {k: float(v) for k, v in method.objective(output, torch.from_numpy(labels), task).items()}

    classification = cross_entropy if style == "paper" else binary_cross_entropy
    p, q = log_softmax(old.astype(float)), log_softmax(logits[:, :3].astype(float))
    divergence = (np.exp(p) * (p - q)).sum() / (6 if style == "paper" else 18)
    expected = {
        "classification": 2 / 5 * classification(logits.astype(float), labels),
        "distillation": 3 / 5 * divergence,
        "expertise": 0.1 * classification(expertise.astype(float), np.array([0, 0, 0, 1, 2, 1])),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert terms[name] == pytest.approx(value, rel=1e-5), name


def own_stages(method: str, monkeypatch: pytest.MonkeyPatch, *names: str, **network: Any) -> Expansion:
    """The method, with stages of these names in every task (task 1 has no exemplars to tune on)."""
    made = create(configuration(method, **network), tiny.tiny_stream())
    assert isinstance(made, Expansion)
    recipe = made.config.learn

    def stages(task: Task) -> list[Stage]:
        return [Stage(name, recipe, keep_optimizer=name == "learn") for name in names]

    monkeypatch.setattr(made, "stages", stages)
    return made


@pytest.mark.parametrize("name", ["dne", "ia", "finetune", "replay", "dytox"])
def test_two_stages_in_which_an_expert_learns_bring_it_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warm-up in front of "learn", from `stages` alone: structure and what trains are as with "learn" alone."""
    grown = []
    for names in (("learn",), ("warm-up", "learn")):
        method = own_stages(name, monkeypatch, *names, **tiny.AUTHORS)
        trained = []
        for task in method.stream:
            found = []
            for stage in method.stages(task):
                method.enter(task, stage)
                found.append([id(parameter) for parameter in method.parameters_to_train().values()])
            assert found[0] == found[-1]
            assert method.model.classifier.classes == task.new.stop
            trained.append({n: p.shape for n, p in method.parameters_to_train().items()})
            assert method.losses(some(method.stream, task), task, stage)
        grown.append((method.model.heads, trained))
    assert grown[0] == grown[1]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("learn-more",), "unknown stage 'learn-more'. Did you mean learn"),
        (("tune",), "'tune' of task 1: \"learn\" comes before it"),
        (("learn", "tune", "warm-up"), "'warm-up' of task 1: it comes before \"tune\""),
        (("stem", "learn"), "'stem' of task 1: a stem learns in the first stage"),
    ],
)
@pytest.mark.parametrize("name", ["dne", "replay", "dytox"])
def test_stages_that_cannot_be_are_refused(
    name: str, names: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = own_stages(name, monkeypatch, *names, **tiny.AUTHORS)
    task = method.stream.task(1)
    *before, last = method.stages(task)
    for stage in before if names[0] != "stem" else []:
        method.enter(task, stage)
    with pytest.raises(LabError) as error:
        method.enter(task, last if names[0] != "stem" else before[0])
    assert said in str(error.value) and str(error.value).startswith(name)


def test_task_attention_is_restricted_after_a_warm_up_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stages of its own, a method must not leave out what ``options.most`` asks for."""
    changed = configuration("dne").with_changes({"options.most": 1})
    method = create(changed, tiny.tiny_stream())
    monkeypatch.setattr(method, "stages", lambda task: [Stage("learn", changed.learn)])
    method.enter(method.stream.task(1), method.stages(method.stream.task(1))[0])
    with pytest.raises(LabError, match="'learn' of task 2: \"warm-up\" comes before it"):
        method.enter(method.stream.task(2), method.stages(method.stream.task(2))[0])


def test_a_stem_is_measured_when_the_expert_comes() -> None:
    """Also where a warm-up of one's own is the first stage that reads it; its images come once."""
    changes = {"network.depth": 2, "network.heads": [1, 1], "network.stem": "conv"}
    asked = presets.resolve("cifar100-small", changes, method="dne")
    method = create(asked, cost.blank_stream(asked.data.tasks, (3, 32, 32)))
    images, task, looks = tiny.images(4, (3, 32, 32)), method.stream.task(1), {}
    batch = Batch(images, torch.arange(4), torch.arange(4))
    for name in ("stem", "warm-up", "learn"):
        stage = Stage(name, asked.learn)
        method.enter(task, stage)
        with torch.no_grad():
            method.eval().initialise(task, stage, iter([batch] if name == "warm-up" else []))
            looks[name] = method.model.stem(images)
    assert looks["warm-up"].mean().abs() < 1e-3 < looks["stem"].mean().abs()
    assert torch.equal(looks["learn"], looks["warm-up"])


def test_weights_are_configuration() -> None:
    stream = tiny.tiny_stream()
    plain = expansion(stream, "ia")
    changed = create(plain.config.with_changes({"loss.distillation": 2, "loss.expertise": 0.5}), stream)
    assert isinstance(changed, Expansion)
    output = Output(torch.randn(4, 5), torch.randn(4, 3), torch.randn(4, 3), [])
    labels, task = torch.tensor([0, 2, 3, 4]), stream.task(3)
    one, other = plain.objective(output, labels, task), changed.objective(output, labels, task)
    assert float(other["distillation"] / one["distillation"]) == pytest.approx(2)
    assert float(other["expertise"] / one["expertise"]) == pytest.approx(5)
    assert torch.equal(other["classification"], one["classification"])


def test_first_task_and_tuning_know_classification_alone() -> None:
    stream = tiny.tiny_stream()
    method = expansion(stream, "dne", PAPER_LOSS)
    first, second = stream.task(1), stream.task(2)
    (learn,) = method.stages(first)
    method.enter(first, learn)
    terms = {k: v.detach() for k, v in method.losses(some(stream, first), first, learn).items()}
    expected = cross_entropy(
        method.model(some(stream, first).images).logits.detach().double().numpy(), some(stream, first).labels.numpy()
    )
    assert terms.keys() == {"classification"}
    assert float(terms["classification"]) == pytest.approx(expected, rel=1e-5)  # weight 1: no class is old
    learn, tune = method.stages(second)
    method.enter(second, learn)
    assert method.losses(some(stream, second), second, learn).keys() == {"classification", "distillation", "expertise"}
    method.enter(second, tune)
    assert method.losses(some(stream, second), second, tune).keys() == {"classification"}


def test_labels_are_ranks_under_any_class_order() -> None:
    """With the order 3 0 4 | 1 2 the new classes' ranks are 3 and 4, whatever their class numbers."""
    stream = tiny.tiny_stream((3, 2), order=(3, 0, 4, 1, 2))
    method = expansion(stream, "ia", PAPER_LOSS)
    for task in stream:
        method.enter(task, method.stages(task)[0])
    batch = stream.batch("train", stream.index("train", range(5)))
    classes = stream.source.labels("train")[batch.index.numpy()]
    seen = {(int(c), int(r)) for c, r in zip(classes, batch.labels, strict=True)}
    assert seen == {(3, 0), (0, 1), (4, 2), (1, 3), (2, 4)}
    output = method.model(batch.images)
    assert output.expertise is not None and output.expertise.shape == (20, 3)
    wanted = np.array([{3: 0, 0: 0, 4: 0, 1: 1, 2: 2}[int(c)] for c in classes])
    expected = 0.1 * cross_entropy(output.expertise.detach().double().numpy(), wanted)
    assert method.objective(output, batch.labels, task)["expertise"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("style", ["paper", "authors"])
@pytest.mark.parametrize("name", METHODS)
def test_steps_leave_old_experts_alone_and_reach_everything_else(name: str, style: str) -> None:
    stream = tiny.tiny_stream()
    loss, network = (PAPER_LOSS, tiny.PAPER) if style == "paper" else (AUTHORS_LOSS, tiny.AUTHORS)
    method = expansion(stream, name, loss, drop_path=0.1, **network)
    for task in stream:
        old = {n: v.clone() for n, v in method.model.experts.state_dict().items()}
        learned: dict[str, torch.Tensor] = {}
        batch = some(stream, task)
        for stage in method.stages(task):
            method.enter(task, stage)
            method.train()
            trained = method.parameters_to_train()
            optimiser = torch.optim.AdamW(trained.values(), lr=1e-3, weight_decay=0.05)
            reached = set()
            for _ in range(3):
                optimiser.zero_grad(set_to_none=True)
                sum(method.losses(batch, task, stage).values()).backward()  # type: ignore[union-attr]
                reached |= {n for n, p in trained.items() if p.grad is not None and p.grad.abs().max() > 0}
                untrained = [p for p in method.parameters() if not p.requires_grad]
                assert all(p.grad is None for p in untrained)
                optimiser.step()
            assert reached == set(trained)
            if stage.name == "tune":
                assert set(trained) == {n for n, _ in method.named_parameters() if n.startswith("model.classifier.")}
                assert not any(m.training for m in method.model.experts.modules())
                frozen = {n: v.clone() for n, v in method.model.experts.state_dict().items()}
                assert all(torch.equal(frozen[n], v) for n, v in learned.items())
            else:
                learned = {n: v.clone() for n, v in method.model.experts.state_dict().items()}
        for n, value in method.model.experts.state_dict().items():
            if n in old:
                assert torch.equal(value, old[n]), n
        assert len(method.model.experts) == task.number
        assert method.predict(batch.images)["classifier"].shape == (len(batch.labels), task.new.stop)


def test_only_the_newest_expert_is_in_training_mode() -> None:
    stream = tiny.tiny_stream()
    method = expansion(stream, "dne", **tiny.AUTHORS)
    for task in list(stream)[:2]:
        method.enter(task, method.stages(task)[0])
    method.train()
    old, new = method.model.experts
    assert not any(m.training for m in old.modules())
    assert new.training and new.blocks[0].training  # type: ignore[union-attr,index]
    method.eval()
    assert not any(m.training for m in method.modules())


def test_features_and_both_ways_of_computing() -> None:
    stream = tiny.tiny_stream()
    method = expansion(stream, "dne", **tiny.AUTHORS)
    for task in stream:
        method.enter(task, method.stages(task)[0])
    images = some(stream, task).images
    features = method.features(images)
    assert features.shape == (12, 4 * (2 + 1 + 1))
    assert torch.equal(features, torch.cat(method.model.readouts(images), 1))
    assert tiny.difference(method.compute(images), method.predict(images)["classifier"]) == 0
    assert tiny.difference(method.compute_literally(images), method.compute(images)) < 1e-5


def test_any_prefix_is_rebuilt_from_the_states_of_its_tasks() -> None:
    stream = tiny.tiny_stream()
    method, images = expansion(stream, "dne", **tiny.AUTHORS), tiny.images(3)
    states, logits = [], []
    for task in stream:
        for stage in method.stages(task):
            method.enter(task, stage)
        with torch.no_grad():
            for parameter in method.model.experts[-1].parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        states.append({n: v.clone() for n, v in method.task_state(task).items()})
        logits.append(method.predict(images)["classifier"].detach())
    assert not any(n.startswith("model.experts.0.") for n in states[1])  # an old expert is stored once
    for upto in (1, 2, 3):
        again = expansion(stream, "dne", **tiny.AUTHORS)
        for task in list(stream)[:upto]:
            for stage in again.stages(task):
                again.enter(task, stage)
        again.load_task_states(states[:upto])
        assert tiny.difference(again.predict(images)["classifier"], logits[upto - 1]) < 1e-6
    with pytest.raises(KeyError, match="missing"):
        again.load_task_states(states[1:])


@pytest.mark.parametrize("name", ["dne", "sta", "replay"])
def test_kept_readouts_tune_as_computed_ones(name: str) -> None:
    """Stage 2 without augmentation computes read-outs once; the losses are those of the whole network."""
    stream = tiny.tiny_stream()
    method = create(configuration(name), stream)
    for task in list(stream)[:2]:
        for stage in method.stages(task):
            method.enter(task, stage)
    task = stream.task(2)
    tune = method.stages(task)[1]
    assert tune.name == "tune" and not tune.recipe.augment
    index = stream.index("train", range(task.new.stop))
    shuffled = stream.batch("train", index.flip(0)[1:])
    method.eval()
    with torch.no_grad():
        method.prepare(task, tune, iter([stream.batch("train", part) for part in index.split(5)]))
    method.train()
    calls = []
    handle = method.model.register_forward_hook(lambda *_: calls.append(1))
    kept = method.losses(shuffled, task, tune)["classification"]
    assert not calls
    augmented = dataclasses.replace(tune, recipe=dataclasses.replace(tune.recipe, augment=("crop",)))
    method.prepare(task, augmented, iter([]))
    computed = method.losses(shuffled, task, augmented)["classification"]
    assert calls and tiny.difference(kept, computed) < 1e-6
    kept.backward()
    assert all((p.grad is not None) == p.requires_grad for p in method.parameters())
    handle.remove()


def second_task(name: str, style: dict[str, Any]) -> tuple[Expansion, Task, Any, Batch, list[Batch]]:
    """A method in stage 1 of task 3, that stage, a batch in another order, and the images of the stage."""
    stream = tiny.tiny_stream()
    method = create(configuration(name, heads=[2, 1, 3], **style), stream)
    assert isinstance(method, Expansion)
    for task in list(stream)[:3]:
        method.enter(task, method.stages(task)[0])
    with torch.no_grad():  # off their start, so that no term is hidden
        for parameter in method.model.parameters():
            parameter.add_(
                0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    index = stream.index("train", range(task.new.stop))
    parts = [stream.batch("train", part) for part in index.split(5)]
    return method, task, method.stages(task)[0], stream.batch("train", index.flip(0)[1:]), parts


def losses_and_gradients(method: Expansion, batch: Batch, task: Task, stage: Any) -> dict[str, torch.Tensor]:
    method.zero_grad(set_to_none=True)
    losses = method.losses(batch, task, stage)
    torch.stack(list(losses.values())).sum().backward()
    return losses | {name: p.grad for name, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
@pytest.mark.parametrize("name", ["dne", "ia", "sta", "progressive"])
def test_what_frozen_experts_offer_is_what_they_compute(name: str, style: dict[str, Any]) -> None:
    """Stage 1 without augmentation runs the newest expert alone; losses and gradients are those of the whole."""
    method, task, stage, batch, parts = second_task(name, style)
    with torch.no_grad():
        method.eval().prepare(task, stage, iter(parts))
    method.train()
    banks: list[int] = []
    step = method.model.step
    method.model.step = lambda bank, *rest: banks.extend(bank.numbers) or step(bank, *rest)  # type: ignore[method-assign]
    kept = losses_and_gradients(method, batch, task, stage)
    assert set(banks) == {3}
    augmented = dataclasses.replace(stage, recipe=dataclasses.replace(stage.recipe, augment=("crop",)))
    method.prepare(task, augmented, iter([]))
    computed = losses_and_gradients(method, batch, task, augmented)
    assert set(banks) == {1, 2, 3}
    assert kept.keys() == computed.keys()
    assert all(tiny.difference(kept[key], computed[key]) < 1e-5 for key in kept)


def test_a_stems_patches_are_kept_too() -> None:
    changes = {"network.depth": 2, "network.heads": [1, 1], "learn.augment": [], "network.stem": "conv"}
    asked = presets.resolve("cifar100-small", changes, method="dne")
    method, _, task = bench.grown(asked, 2, "cpu")
    images, labels = bench.images_of(method, 6, "cpu")
    batch, stage = Batch(images, labels, torch.arange(6)), method.stages(task)[0]
    with torch.no_grad():
        method.eval().prepare(task, stage, iter([batch]))
    method.train()
    assert method.model.stem is not None
    stems: list[int] = []
    method.model.stem.register_forward_hook(lambda *_: stems.append(1))
    kept = losses_and_gradients(method, batch, task, stage)
    assert not stems
    method._offered = None
    computed = losses_and_gradients(method, batch, task, stage)
    assert stems and all(torch.allclose(kept[key], computed[key], 1e-5, 1e-7) for key in kept)


def test_frozen_experts_run_where_they_do_not_fit_are_hooked_or_thawed(monkeypatch: pytest.MonkeyPatch) -> None:
    method, task, stage, batch, parts = second_task("dne", tiny.AUTHORS)
    calls: list[int] = []
    step = method.model.step
    method.model.step = lambda bank, *rest: calls.extend(bank.numbers) or step(bank, *rest)  # type: ignore[method-assign]

    def run() -> set[int]:
        calls.clear()
        losses_and_gradients(method, batch, task, stage)
        return set(calls)

    def prepare() -> None:
        with torch.no_grad():
            method.eval().prepare(task, stage, iter(parts))
        method.train()

    prepare()
    assert run() == {3}
    handle = method.model.blocks[0].task1.weights.register_forward_hook(lambda *_: None)  # type: ignore[union-attr]
    assert run() == {1, 2, 3}
    handle.remove()
    assert run() == {3}
    method.model.experts[0].requires_grad_(True)
    assert run() == {1, 2, 3}
    method.model.experts[0].requires_grad_(False)
    monkeypatch.setattr("dne_lab.methods.expansion.CACHED_BYTES", 1000)
    prepare()
    assert run() == {1, 2, 3}
