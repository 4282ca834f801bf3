"""The protocol: registry, stages, what trains in the plain methods, and errors."""

from itertools import pairwise
from typing import ClassVar

import pytest
import tiny
import torch
from torch import Tensor, nn

from dne_lab.core import config
from dne_lab.core.errors import LabError
from dne_lab.data.stream import Batch, ClassStream, Task
from dne_lab.methods import Method, Stage, create, find
from dne_lab.methods.expansion import Expansion
from dne_lab.methods.finetune import FineTuning, Joint, Replay


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> type[Method]:
    """A method defined here, as in a notebook cell; other tests do not see it in the registry."""
    monkeypatch.setattr(Method, "registry", dict(Method.registry))

    class Averages(Method):
        """A linear classifier on raw pixels, defined here as it would be in a notebook cell."""

        name = "test-averages"
        uses_memory: ClassVar[bool] = False

        def __init__(self, config: config.Config, stream: ClassStream) -> None:
            super().__init__(config, stream)
            channels, height, width = stream.shape
            self.linear = nn.Linear(channels * height * width, 1)

        def enter(self, task: Task, stage: Stage) -> None:
            self.linear = nn.Linear(self.linear.in_features, task.new.stop)

        def losses(self, batch: Batch, task: Task, stage: Stage) -> dict[str, Tensor]:
            return {"ce": nn.functional.cross_entropy(self.predict(batch.images)["linear"], batch.labels)}

        def features(self, images: Tensor) -> Tensor:
            return images.flatten(1) / 255

        def predict(self, images: Tensor) -> dict[str, Tensor]:
            return {"linear": self.linear(self.features(images))}

    return Averages


def tiny_config(method: str, **changes: object) -> config.Config:
    """A tiny network; ``changes`` are dotted fields with "__" for the dot."""
    base = {
        "method": method,
        "network.patch": 4,
        "network.depth": 2,
        "network.head_width": 4,
        "network.heads": "2,1",
        "memory.budget": 10,
    }
    return config.Config().with_changes({**base, **{k.replace("__", "."): v for k, v in changes.items()}})


def test_a_method_of_ones_own(own: type[Method]) -> None:
    stream = tiny.tiny_stream()
    assert find("test-averages") is own
    method = create(tiny_config("test-averages"), stream)
    assert isinstance(method, own)
    for task in stream:
        (stage,) = method.stages(task)
        assert stage == Stage("learn", method.config.learn)
        method.enter(task, stage)
        method.train()
        optimiser = torch.optim.SGD(method.parameters_to_train().values(), lr=0.005)
        batch = stream.batch("train", stream.index("train", range(task.new.stop)))
        values = []
        for _ in range(5):
            optimiser.zero_grad()
            loss = sum(method.losses(batch, task, stage).values())
            assert isinstance(loss, Tensor)
            loss.backward()
            optimiser.step()
            values.append(loss.item())
        assert values[-1] < values[0]
        assert method.predict(batch.images)["linear"].shape == (len(batch.labels), task.new.stop)
    assert torch.equal(method.compute_literally(batch.images)["linear"], method.predict(batch.images)["linear"])  # type: ignore[index]


def test_a_subclass_without_a_name_is_not_registered(own: type[Method]) -> None:
    before = dict(Method.registry)
    type("Unnamed", (own,), {})
    assert Method.registry == before


def test_unfinished_methods_say_what_is_missing() -> None:
    stream = tiny.tiny_stream()
    method = Method(tiny_config("dne"), stream)
    task = stream.task(1)
    stage = method.stages(task)[0]
    images = tiny.images()
    for call, name in (
        (lambda: method.enter(task, stage), "enter"),
        (lambda: method.losses(Batch(images, images, images), task, stage), "losses"),
        (lambda: method.features(images), "features"),
        (lambda: method.predict(images), "predict"),
    ):
        with pytest.raises(NotImplementedError, match=name):
            call()


def test_errors() -> None:
    stream = tiny.tiny_stream()
    with pytest.raises(LabError, match=r"unknown method 'dnee'. Did you mean dne") as error:
        create(tiny_config("dnee"), stream)
    for name in ("ia", "sta", "dne", "progressive", "joint", "finetune", "replay"):
        assert name in str(error.value)
    for name in ("dne", "replay"):
        with pytest.raises(LabError, match=r"memory.budget = 4 is smaller than the number of classes \(5\)"):
            create(tiny_config(name, memory__budget=4), stream)
    for name in ("finetune", "joint"):  # they keep nothing
        create(tiny_config(name, memory__budget=0), stream)
    with pytest.raises(LabError, match="patch = 3 does not divide images of 8 x 12"):
        create(tiny_config("dne", network__patch=3), stream)
    with pytest.raises(LabError, match=r"options.gain"):
        create(tiny_config("dne", options__gain=1), stream)


def test_creation_depends_on_the_seed_alone(own: type[Method]) -> None:
    stream = tiny.tiny_stream()
    starts = []
    for seed, disturbance in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(disturbance)
        state = torch.get_rng_state()
        starts.append(create(tiny_config("test-averages", seed=seed), stream).state_dict()["linear.weight"])
        assert torch.equal(state, torch.get_rng_state())  # torch's own generator is left as it was
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_stages() -> None:
    stream = tiny.tiny_stream()
    first, second = stream.task(1), stream.task(2)
    for name, later in (("dne", ["learn", "tune"]), ("replay", ["learn", "tune"]), ("finetune", ["learn"])):
        method = create(tiny_config(name), stream)
        assert [s.name for s in method.stages(first)] == ["learn"]
        assert [s.name for s in method.stages(second)] == later
        assert [s.data for s in method.stages(second)] == ["task+memory", "balanced"][: len(later)]
    method = create(tiny_config("dne", tune__epochs=0), stream)
    assert [s.name for s in method.stages(second)] == ["learn"]


@pytest.mark.parametrize("name", ["finetune", "replay"])
def test_finetuning_trains_one_network(name: str) -> None:
    stream = tiny.tiny_stream()
    method = create(tiny_config(name), stream)
    assert isinstance(method, FineTuning)
    assert (isinstance(method, Replay), method.uses_memory) == (name == "replay",) * 2
    counts, images = [], tiny.images(4)
    for task in stream:
        learn = method.stages(task)[0]
        before = None if task.number == 1 else method.predict(images)["classifier"].detach()
        method.enter(task, learn)
        counts.append(sum(p.numel() for p in method.parameters()))
        assert all(p.requires_grad for p in method.parameters())
        if before is not None:
            grown = method.predict(images)["classifier"]
            assert tiny.difference(grown[:, : before.shape[1]], before) < 1e-5
        index = stream.index("train", range(task.new.stop))
        terms = method.losses(stream.batch("train", index), task, learn)
        assert terms.keys() == {"classification"}
        sum(terms.values()).backward()  # type: ignore[union-attr]
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in method.parameters())
        if name == "replay" and task.number > 1:
            method.enter(task, method.stages(task)[1])
            assert all(n.startswith("model.classifier.") for n in method.parameters_to_train())
    width = 2 * 4
    assert [b - a for a, b in pairwise(counts)] == [1 * (width + 1), 2 * (width + 1)]
    assert len(method.model.experts) == 1 and method.model.teacher is None
    state = method.task_state(task)
    other = create(tiny_config(name, seed=1), stream)
    for task in stream:
        for stage in other.stages(task):
            other.enter(task, stage)
    other.load_task_states([state])
    assert torch.equal(other.predict(images)["classifier"], method.predict(images)["classifier"])


def test_joint_is_one_task_of_a_plain_transformer() -> None:
    stream = tiny.tiny_stream().joint()
    method = create(tiny_config("joint"), stream)
    assert isinstance(method, Joint) and Joint.joint and not Joint.uses_memory
    (task,) = stream
    (stage,) = method.stages(task)
    method.enter(task, stage)
    assert (len(method.model.experts), method.model.classifier.classes) == (1, 5)
    batch = stream.batch("train", stream.index("train", task.new))
    assert method.losses(batch, task, stage).keys() == {"classification"}
    assert all(p.requires_grad for p in method.parameters())


def test_expansion_adds_the_same_number_of_parameters_only_where_the_paper_says() -> None:
    """IA adds the same each task; DNE's value maps grow by one head's maps with every head before."""
    stream = tiny.tiny_stream((1, 1, 1, 1))
    grown = {}
    for name in ("ia", "dne"):
        method, counts = create(tiny_config(name), stream), []
        assert isinstance(method, Expansion)
        for task in stream:
            method.enter(task, method.stages(task)[0])
            counts.append(sum(p.numel() for p in method.model.experts.parameters()))
        grown[name] = [b - a for a, b in pairwise(counts)]
    width, hidden, depth = 4, 16, 2
    assert len(set(grown["ia"])) == 1
    per_head = depth * (2 * width * hidden + hidden + width)  # w_v and b_v of both blocks
    assert [b - a for a, b in pairwise(grown["dne"])] == [per_head, per_head]
