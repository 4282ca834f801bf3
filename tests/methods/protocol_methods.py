"""Five published methods against the `Method` protocol, with networks of a few hundred weights on 8 x 8 images.

What is kept of each is its structure: stages, what grows, what trains, which values need data, what it predicts. They
are no baselines, and no other test sees them in the registry: `METHODS` holds them.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dne_lab.core import config
from dne_lab.data.source import ArraySource
from dne_lab.data.stream import Batch, ClassStream, Task
from dne_lab.methods.base import BALANCED, Method, Stage

TASKS, WIDTH, PROXIES, TEMPERATURE = (3, 2, 2), 12, 2, 2.0


def stream() -> ClassStream:
    """Seven classes of 8 x 8 pixels in three tasks."""
    draw = np.random.default_rng(5)
    pattern = draw.integers(0, 120, (7, 8, 8))

    def images(labels: np.ndarray) -> np.ndarray:
        return (pattern[labels] + draw.integers(0, 130, (len(labels), 8, 8))).astype(np.uint8)

    train, test = np.arange(7).repeat(14), np.arange(7).repeat(10)
    return ClassStream(ArraySource(images(train), train, images(test), test), TASKS)


def settings(method: str) -> config.Config:
    """The configuration of a run on `stream`."""
    tree = {
        "method": method,
        "data": {"name": "arrays", "tasks": list(TASKS)},
        "learn": {"epochs": 4, "batch": 12, "optimizer": "sgd", "lr": 0.05, "weight_decay": 1e-4, "clip": 5.0},
        "tune": {"epochs": 3, "batch": 8, "optimizer": "sgd", "lr": 0.1},
        "memory": {"budget": 28},
    }
    if method.endswith("dytox"):
        tree["learn"] = {"epochs": 5, "batch": 12, "lr": 0.01}
    if method == "dytox":
        tree["learn"] = {"epochs": 20, "batch": 12, "lr": 0.005}
        tree["tune"] = {"epochs": 3, "batch": 8, "lr": 0.003}
        tree["network"] = {"patch": 4, "depth": 2, "head_width": 16, "heads": [2]}
        tree["loss"] = {"classification": "ce", "reduction": "batch"}
    elif method in BASELINES:
        tree["options"] = {"width": 4} | ({"later": {"weight_decay": 5e-5}} if method == "icarl" else {})
        tree["learn"] |= {"epochs": 8, "lr": 0.1}
    return config.from_dict(tree)


def soft_cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """Against the softmax of ``wanted``, both (B, classes) divided by the temperature."""
    return F.cross_entropy(logits / TEMPERATURE, F.softmax(wanted / TEMPERATURE, 1))


def grown(old: nn.Linear | None, inputs: int, outputs: int) -> nn.Linear:
    """A larger linear layer with the old weights in its corner and zeros where new inputs meet old outputs."""
    new = nn.Linear(inputs, outputs)
    if old is None:
        return new
    with torch.no_grad():
        new.weight[: old.out_features] = 0
        new.weight[: old.out_features, : old.in_features] = old.weight
        new.bias[: old.out_features] = old.bias
    return new


def frozen(module: nn.Module) -> Any:
    """A copy that does not train."""
    return copy.deepcopy(module).requires_grad_(False)


class Encoder(nn.Module):
    """(B, 1, 8, 8) uint8 -> 3 maps of 4 x 4 before their activation, and 12 features."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48))
        self.out = nn.Linear(48, WIDTH)

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.maps(images.flatten(1).float() / 128 - 1)
        return maps.view(-1, 3, 4, 4), self.out(F.relu(maps))

    def forward(self, images: Tensor) -> Tensor:
        return self.both(images)[1]


class Branch(nn.Module):
    """An encoder and its linear classifier."""

    def __init__(self, encoder: nn.Module, classifier: nn.Linear | None = None) -> None:
        super().__init__()
        self.encoder, self.classifier = encoder, classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.encoder(images))


class ICaRL(Method):
    """One network; cross entropy and distillation to the old logits; nearest mean of exemplars."""

    name = "tiny-icarl"

    def __init__(self, config: config.Config, stream: ClassStream) -> None:
        super().__init__(config, stream)
        self.network = Branch(Encoder())
        self.teacher: Branch | None = None
        self.register_buffer("means", torch.zeros(0, WIDTH))

    def stages(self, task: Task) -> list[Stage]:
        recipe = self.config.learn if task.number == 1 else replace(self.config.learn, weight_decay=5e-5)
        return [Stage("learn", recipe)]

    def enter(self, task: Task, stage: Stage) -> None:
        self.teacher = frozen(self.network) if task.old else None
        self.network.classifier = grown(self.network.classifier, WIDTH, task.new.stop)
        self.means = F.pad(self.means, (0, 0, 0, len(task.new)))

    def losses(self, batch: Batch, task: Task, stage: Stage) -> dict[str, Tensor]:
        logits = self.network(batch.images)
        terms = {"classification": F.cross_entropy(logits, batch.labels)}
        if self.teacher is not None:
            terms["distillation"] = soft_cross_entropy(logits[:, : len(task.old)], self.teacher(batch.images))
        return terms

    def features(self, images: Tensor) -> Tensor:
        return F.normalize(self.network.encoder(images)) + F.normalize(self.network.encoder(images.flip(3)))

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        nearest = -torch.cdist(F.normalize(self.features(images)), self.means)
        return {"nme": nearest, "classifier": self.network(images)}

    def network_to_keep(self) -> list[nn.Module]:
        return [self.network]

    def finish(self, task: Task, exemplars: Iterator[Batch]) -> None:
        found = [(self.features(batch.images), batch.labels) for batch in exemplars]
        features, labels = torch.cat([f for f, _ in found]), torch.cat([y for _, y in found])
        means = torch.stack([features[labels == rank].mean(0) for rank in range(task.new.stop)])
        self.means.copy_(F.normalize(means))


class PODNet(Method):
    """Several proxies per class, compared by a cosine; pooled outputs distillation of maps and features."""

    name = "tiny-podnet"

    class Proxies(nn.Module):
        """A parameter a task, so that old ones can be frozen, and a learned scale."""

        def __init__(self) -> None:
            super().__init__()
            self.tasks = nn.ParameterList()
            self.scale = nn.Parameter(torch.tensor(4.0))

        def forward(self, features: Tensor) -> Tensor:
            unit = [F.normalize(proxies, dim=2).flatten(0, 1) for proxies in self.tasks]
            scores = -torch.cdist(F.normalize(features), torch.cat(unit)).square().unflatten(1, (-1, PROXIES))
            return (F.softmax(scores, 2) * scores).sum(2)

    def __init__(self, config: config.Config, stream: ClassStream) -> None:
        super().__init__(config, stream)
        self.encoder, self.classifier = Encoder(), PODNet.Proxies()
        self.teacher: Encoder | None = None

    def enter(self, task: Task, stage: Stage) -> None:
        if stage.name == "tune":
            self.requires_grad_(False)
            self.classifier.requires_grad_(True)
            return
        self.teacher = frozen(self.encoder) if task.old else None
        self.encoder.requires_grad_(True)
        self.classifier.tasks.requires_grad_(False)
        self.classifier.tasks.append(nn.Parameter(torch.zeros(len(task.new), PROXIES, WIDTH)))
        self.classifier.scale.requires_grad_(True)

    def initialise(self, task: Task, stage: Stage, batches: Iterator[Batch]) -> None:
        if stage.name == "tune":
            return
        found = [(F.normalize(self.encoder(batch.images)), batch.labels) for batch in batches]
        features, labels = torch.cat([f for f, _ in found]), torch.cat([y for _, y in found])
        for position, rank in enumerate(task.new):
            mine = features[labels == rank]
            centres = mine[torch.randperm(len(mine))[:PROXIES]]
            for _ in range(3):  # k-means
                nearest = torch.cdist(mine, centres).argmin(1)
                centres = torch.stack([mine[nearest == k].mean(0) for k in range(PROXIES)])
            self.classifier.tasks[-1][position] = centres

    def losses(self, batch: Batch, task: Task, stage: Stage) -> dict[str, Tensor]:
        maps, features = self.encoder.both(batch.images)
        scores = self.classifier.scale * self.classifier(features)
        positive = F.one_hot(batch.labels, task.new.stop).bool()
        others = scores.masked_fill(positive, -torch.inf).logsumexp(1)  # NCA: without the positive
        terms = {"nca": F.relu(others - scores[positive]).mean()}
        if self.teacher is not None and stage.name == "learn":
            old_maps, old_features = self.teacher.both(batch.images)
            factor = (task.new.stop / len(task.new)) ** 0.5
            pooled, old_pooled = (
                F.normalize(torch.cat([m.square().sum(2), m.square().sum(3)], 2).flatten(1)) for m in (maps, old_maps)
            )
            terms["pod_spatial"] = 3 * factor * (pooled - old_pooled).norm(dim=1).mean()
            terms["pod_flat"] = factor * (1 - F.cosine_similarity(features, old_features)).mean()
        return terms

    def features(self, images: Tensor) -> Tensor:
        return self.encoder(images)

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        return {"classifier": self.classifier(self.encoder(images))}

    def network_to_keep(self) -> list[nn.Module]:
        return [self.encoder, self.classifier]


class DER(Method):
    """An extractor a task; warm-up, then both classifiers again from the start with the same optimiser."""

    name = "tiny-der"

    def __init__(self, config: config.Config, stream: ClassStream) -> None:
        super().__init__(config, stream)
        self.extractors = nn.ModuleList()
        self.classifier: nn.Linear | None = None
        self.auxiliary: nn.Linear | None = None

    def stages(self, task: Task) -> list[Stage]:
        warm = Stage("warm-up", replace(self.config.learn, epochs=2, warmup=2))
        learn = Stage("learn", replace(self.config.learn, schedule="milestones", milestones=(3,)), keep_optimizer=True)
        return (
            [warm, learn]
            if task.number == 1
            else [warm, learn, Stage("tune", replace(self.config.tune, lr=0.5), BALANCED)]
        )

    def enter(self, task: Task, stage: Stage) -> None:
        if stage.name == "warm-up":
            self.requires_grad_(False)
            new = copy.deepcopy(self.extractors[-1]) if task.old else Encoder()
            self.extractors.append(new.requires_grad_(True))
            self.classifier = nn.Linear(WIDTH * task.number, task.new.stop, bias=False)
            self.auxiliary = nn.Linear(WIDTH, len(task.new) + 1) if task.old else None
        else:
            self.classifier.reset_parameters()
            if self.auxiliary is not None:
                self.auxiliary.reset_parameters()
        if stage.name == "tune":
            self.requires_grad_(False)
            self.classifier.requires_grad_(True)

    def losses(self, batch: Batch, task: Task, stage: Stage) -> dict[str, Tensor]:
        features = [extractor(batch.images) for extractor in self.extractors]
        logits = self.classifier(torch.cat(features, 1))
        if stage.name == "tune":
            return {"classification": F.cross_entropy(logits / 5, batch.labels)}
        terms = {"classification": F.cross_entropy(logits, batch.labels)}
        if self.auxiliary is not None:
            target = (batch.labels - task.new.start + 1).clamp_min(0)  # all old classes are class 0
            terms["auxiliary"] = F.cross_entropy(self.auxiliary(features[-1]), target)
        return terms

    def features(self, images: Tensor) -> Tensor:
        return torch.cat([extractor(images) for extractor in self.extractors], 1)

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        return {"classifier": self.classifier(self.features(images))}

    def network_to_keep(self) -> list[nn.Module]:
        return [self.extractors, self.classifier]


@dataclass(frozen=True)
class FosterOptions:
    """The base of the effective numbers in each stage."""

    boost_beta: float = 0.94
    compress_beta: float = 0.97


class FOSTER(Method):
    """A new branch fits what the frozen old one leaves (the teacher); a student of one branch is what is kept."""

    name = "tiny-foster"
    Options: ClassVar[type] = FosterOptions

    def __init__(self, config: config.Config, stream: ClassStream) -> None:
        super().__init__(config, stream)
        self.student: Branch | None = None
        self.old: Branch | None = None
        self.boost: Branch | None = None  # the new encoder, with a classifier of its own over all classes
        self.teacher: nn.Linear | None = None
        self.register_buffer("counts", torch.zeros(0))

    def stages(self, task: Task) -> list[Stage]:
        if task.number == 1:
            return [Stage("learn", self.config.learn)]
        compress = replace(self.config.learn, epochs=10, weight_decay=0.0)
        return [Stage("boost", self.config.learn), Stage("compress", compress)]

    def enter(self, task: Task, stage: Stage) -> None:
        if stage.name == "learn":
            self.student = Branch(Encoder(), nn.Linear(WIDTH, task.new.stop))
        elif stage.name == "boost":
            assert self.student is not None
            self.old, self.student = self.student, None
            self.old.requires_grad_(False)
            encoder = copy.deepcopy(self.old.encoder).requires_grad_(True)
            self.boost = Branch(encoder, nn.Linear(WIDTH, task.new.stop))
            self.teacher = grown(self.old.classifier, 2 * WIDTH, task.new.stop)
            self.counts = torch.zeros(task.new.stop)
        else:
            self.requires_grad_(False)
            self.student = self.smaller(task.new.stop).requires_grad_(True)

    def smaller(self, classes: int) -> Branch:
        """The old branch, with a classifier for more classes."""
        return Branch(copy.deepcopy(self.old.encoder), grown(self.old.classifier, WIDTH, classes))

    def initialise(self, task: Task, stage: Stage, batches: Iterator[Batch]) -> None:
        if stage.name == "boost":
            self.counts += torch.bincount(torch.cat([b.labels for b in batches]), minlength=task.new.stop)

    def weights(self, beta: float) -> Tensor:
        """(seen,) of effective numbers, with mean 1."""
        effective = (1 - beta) / (1 - beta**self.counts)
        return effective / effective.mean()

    def features_of_teacher(self, images: Tensor) -> Tensor:
        return torch.cat([self.old.encoder(images), self.boost.encoder(images)], 1)

    def losses(self, batch: Batch, task: Task, stage: Stage) -> dict[str, Tensor]:
        if stage.name == "learn":
            return {"classification": F.cross_entropy(self.student(batch.images), batch.labels)}
        features = self.features_of_teacher(batch.images)
        logits = self.teacher(features)
        if stage.name == "boost":
            old = self.old.classifier(features[:, :WIDTH])
            return {
                "classification": F.cross_entropy(logits / self.weights(self.options.boost_beta), batch.labels),
                "branch": F.cross_entropy(self.boost.classifier(features[:, WIDTH:]), batch.labels),
                "distillation": soft_cross_entropy(logits[:, : len(task.old)], old),
            }
        wanted = F.softmax(logits / TEMPERATURE, 1) * self.weights(self.options.compress_beta)
        student = self.student(batch.images) / TEMPERATURE
        return {"compression": F.cross_entropy(student, wanted / wanted.sum(1, keepdim=True))}

    def features(self, images: Tensor) -> Tensor:
        return self.student.encoder(images) if self.old is None else self.features_of_teacher(images)

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        found = {} if self.student is None else {"student": self.student(images)}
        return found if self.old is None else found | {"teacher": self.teacher(self.features_of_teacher(images))}

    def compute(self, images: Tensor) -> object:
        return self.predict(images) if self.student is None else self.student(images)

    def network_to_keep(self) -> list[nn.Module]:
        return [self.old, self.boost.encoder, self.teacher] if self.student is None else [self.student]


class DyTox(Method):
    """An encoder shared by all tasks, and a token with its own classifier a task."""

    name = "tiny-dytox"

    class Network(nn.Module):
        """(B, 1, 8, 8) uint8 -> patches of 4 x 4 -> each task's token after one class attention -> logits."""

        def __init__(self) -> None:
            super().__init__()
            self.patches, self.places = nn.Linear(16, WIDTH), nn.Parameter(torch.randn(4, WIDTH) * 0.1)
            self.mix = nn.Sequential(nn.Linear(4 * WIDTH, 4 * WIDTH), nn.ReLU())
            self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
            self.tokens, self.classifiers = nn.ParameterList(), nn.ModuleList()

        def readouts(self, images: Tensor) -> list[Tensor]:
            cut = (images.float() / 128 - 1).unfold(2, 4, 4).unfold(3, 4, 4).reshape(-1, 4, 16)
            x = self.patches(cut) + self.places
            x = x + self.mix(x.flatten(1)).view_as(x)
            found = []
            for token in self.tokens:
                seen = torch.cat([token.expand(len(x), 1, -1), x], 1)
                scores = self.query(token) @ self.key(seen).transpose(1, 2) / WIDTH**0.5
                found.append(token[0] + (F.softmax(scores, -1) @ self.value(seen))[:, 0])
            return found

        def classify(self, readouts: list[Tensor]) -> Tensor:
            return torch.cat([head(readout) for head, readout in zip(self.classifiers, readouts, strict=True)], 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.classify(self.readouts(images))

    def __init__(self, config: config.Config, stream: ClassStream) -> None:
        super().__init__(config, stream)
        self.network = DyTox.Network()
        self.teacher: DyTox.Network | None = None
        self.divergence: nn.Linear | None = None

    def enter(self, task: Task, stage: Stage) -> None:
        net = self.network
        if stage.name == "tune":
            self.requires_grad_(False)
            net.tokens.requires_grad_(True)
            net.classifiers.requires_grad_(True)
            self.teacher = self.divergence = None
            return
        self.teacher = frozen(net) if task.old else None
        self.divergence = nn.Linear(WIDTH, len(task.new) + 1) if task.old else None
        net.requires_grad_(True)
        net.tokens.requires_grad_(False)
        net.classifiers.requires_grad_(False)
        net.tokens.append(nn.Parameter(torch.randn(1, WIDTH) * 0.1))
        net.classifiers.append(nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, len(task.new))))

    def losses(self, batch: Batch, task: Task, stage: Stage) -> dict[str, Tensor]:
        readouts = self.network.readouts(batch.images)
        logits = self.network.classify(readouts)
        wanted = F.one_hot(batch.labels, task.new.stop).float()
        terms = {"classification": F.binary_cross_entropy_with_logits(logits, wanted)}
        if self.teacher is not None and self.divergence is not None:
            share = len(task.old) / task.new.stop
            old, new = F.log_softmax(self.teacher(batch.images), 1), F.log_softmax(logits[:, : len(task.old)], 1)
            target = F.one_hot((batch.labels - task.new.start + 1).clamp_min(0), len(task.new) + 1).float()
            terms = {
                "classification": (1 - share) * terms["classification"],
                "distillation": share * F.kl_div(new, old, reduction="none", log_target=True).mean(),
                "divergence": 0.1 * F.binary_cross_entropy_with_logits(self.divergence(readouts[-1]), target),
            }
        return terms

    def features(self, images: Tensor) -> Tensor:
        return torch.cat(self.network.readouts(images), 1)

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        return {"classifier": self.network(images)}

    def network_to_keep(self) -> list[nn.Module]:
        return [self.network]


METHODS = {cls.name: Method.registry.pop(cls.name) for cls in (ICaRL, PODNet, DER, FOSTER, DyTox)}
REAL = ("icarl", "podnet", "der", "foster", "dytox", "replay-resnet")
BASELINES = {name: Method.registry[name] for name in REAL}
ALL = METHODS | BASELINES
