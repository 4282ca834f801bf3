"""DyTox (Douillard et al., CVPR 2022): a token per task on one transformer that goes on training."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dne_lab.core.config import LATER_HEADS, Config, Network
from dne_lab.core.errors import LabError
from dne_lab.core.schema import settings
from dne_lab.data.stream import Batch, ClassStream, Task
from dne_lab.methods.base import Method, Stage, frozen
from dne_lab.methods.expansion import Expansion
from dne_lab.models import literal
from dne_lab.models.attention import CLASS, Axes
from dne_lab.models.bank import Bank, Context, LayerWeights, linear, norm
from dne_lab.models.block import ClassAttention
from dne_lab.models.expandable import ExpandableViT, Output
from dne_lab.models.expert import ModulesOf, small, small_linear
from dne_lab.models.variants import IA


class TaskTokenAttention(ClassAttention):
    """Class attention of all task tokens at once: each sees itself and the patches, no other token.

    The tokens are the same for every image, and no patch is projected, so a task costs little (as in `ClassAttention`).
    """

    def forward(self, x: Tensor, w: LayerWeights, bank: Bank, context: Context) -> Tensor:
        """(1, B, T + N, C), T task tokens first, not normalised -> (1, B, T, C), to be added to the tokens."""
        (x,) = norm(x, w.norm1)
        count, heads = x.shape[1] - self.grid[0] * self.grid[1], bank.most_heads
        tokens, patches = x[:1, :count], x[:, count:]
        w_q, w_k, w_v = (weight.unflatten(0, (heads, -1)) for weight in w.qkv[0])  # (K, D, C) each
        absorbed = torch.einsum("btc,kdc,kde->btke", tokens, w_q, w_k)  # q . (W_k z) = (W_k^T q) . z
        own = (absorbed * tokens.unsqueeze(2)).sum(-1, keepdim=True)
        others = absorbed[0].flatten(0, 1) @ patches.mT  # (B, T x K, N)
        # (B, T x K, 1 + N)
        scores = torch.cat([own.flatten(1, 2).expand(len(x), -1, -1), others], -1) * bank.head_width**-0.5
        a = self.weights(scores, self._axes(count, heads))  # (B, T x K, 1 + N)
        seen = a[..., :1] * tokens.repeat_interleave(heads, 1) + a[..., 1:] @ patches
        value = torch.einsum("btkc,kdc->btkd", seen.unflatten(1, (count, heads)), w_v)  # (B, T, K, D)
        return linear(value.flatten(2)[None], w.out)  # (1, B, T, K x D)

    def _axes(self, count: int, heads: int) -> Axes:
        """One query head for each task and head; tasks stand where other networks have experts."""
        task = tuple(number + 1 for number in range(count) for _ in range(heads))
        head = tuple(range(heads)) * count
        return Axes(CLASS, "b h kp", self.layer, task, head, task, head, None, self.grid, 1)


class TaskToken(nn.Module):
    """The token of a task after the first, and the norm after it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = small(width)
        self.norm = nn.LayerNorm(width)


class TaskClassifiers(nn.Module):
    """A linear classifier per task, each on the read-out of its own token."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: ModulesOf[nn.Linear] = ModulesOf()

    @property
    def classes(self) -> int:
        """Number of classes."""
        return sum(layer.out_features for layer in self.tasks)

    def grow(self, classes: int, width: int) -> None:
        """Adds a task of ``classes`` classes."""
        self.tasks.append(small_linear(width, classes))

    def forward(self, readouts: Sequence[Tensor]) -> Tensor:
        """One (B, width) tensor per task -> logits (B, classes)."""
        return torch.cat([layer(readout) for layer, readout in zip(self.tasks, readouts, strict=True)], 1)


class DyToxViT(ExpandableViT):
    """A single expert that all tasks share; a task adds a token, a norm and a classifier (task 1 has the expert's own).

    Args: those of `ExpandableViT`.

    Raises:
        LabError: a network whose read-out is not class attention.
    """

    def __init__(
        self,
        network: Network,
        shape: tuple[int, int, int],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        if network.readout != "class_attention":
            raise LabError(
                f"network.readout = {network.readout}: dytox reads its task tokens by class attention. "
                "Set network.readout=class_attention, or take the preset authors-code."
            )
        super().__init__(network, shape, IA, mean, std)
        self.blocks[-1].class_attention = TaskTokenAttention(CLASS, network.depth - 1, self.grid, 1)
        self.classifier = TaskClassifiers()  # type: ignore[assignment]
        self.later: ModulesOf[TaskToken] = ModulesOf()

    @property
    def tokens(self) -> list[Tensor]:
        """The token of each task, (C,)."""
        return [self.experts[0].class_token, *(task.token for task in self.later)]

    @property
    def norms(self) -> list[nn.Module]:
        """The norm after each task's token."""
        return [self.experts[0].norm, *(task.norm for task in self.later)]

    def add_task(self, classes: int) -> None:
        """Adds a task after the first, which `expand` makes; earlier tokens, norms and classifiers are frozen."""
        width = self.heads[0] * self.network.head_width
        self.thaw()
        for part in self._own():
            part.requires_grad_(False)
        self.later.append(TaskToken(width))
        self.classifier.grow(classes, width)
        self.expertise = small_linear(width, classes + 1)
        self.to(self.mean)

    def tune_readouts(self) -> None:
        """For "tune": the encoder (embedding and blocks of spatial attention) is frozen, what reads it trains."""
        self._freeze()
        self.expertise = None
        for part in (*self._own(), self.experts[0].blocks[-1]):
            part.requires_grad_(True)

    def _own(self) -> list[Any]:
        """What belongs to single tasks."""
        return [*self.tokens, *self.norms, self.classifier]

    def forward(self, images: Tensor) -> Output:
        """(B, C, H, W) uint8 images -> `Output`, without old logits: those are another network's."""
        readouts = self.readouts(images)
        expertise = None if self.expertise is None else self.expertise(readouts[-1])
        return Output(self.classifier(readouts), None, expertise, readouts)

    def readouts(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) uint8 -> one (B, C) read-out per task."""
        patches = self.patches(images)
        (bank,) = self.banks()
        *encoder, reader = zip(self.blocks, bank.layers, strict=True)
        x = (linear(patches, bank.embed) + bank.position)[None]
        still = dataclasses.replace(bank, training=bank.training and bank.layers[0].qkv.requires_grad)
        for block, w in encoder:
            x = block(x, w, still, Context(bank.total))
        tokens = torch.stack(self.tokens).expand(1, len(images), -1, -1)
        block, w = reader
        (x,) = block(torch.cat([tokens, x], 2), w, bank, Context(bank.total))
        return [layer(out) for layer, out in zip(self.norms, x.unbind(1), strict=True)]

    def readouts_literally(self, images: Tensor) -> list[Tensor]:
        """The same as the equations are written: the last block once per task, with its keys and values each time."""
        *encoder, last = range(self.network.depth)
        experts = list(self.experts)
        x = [literal.embed(experts[0], self.patches(images), with_token=False)]
        for layer in encoder:
            x = literal.block(self, experts, layer, x).r
        found = []
        for token, layer_norm in zip(self.tokens, self.norms, strict=True):
            seen = torch.cat([token.expand(len(images), 1, -1), x[0]], 1)
            (out,) = literal.block(self, experts, last, [seen]).r
            found.append(layer_norm(out[:, 0]))
        return found


@settings
class DyToxOptions:
    """``shuffle_tune``: whether "tune" shuffles its images (the authors' code shows them class by class)."""

    shuffle_tune: bool = True


class DyTox(Expansion):
    """Learns all tasks with one encoder, and each with a token of its own, under the objective of `Expansion`.

    The expertise classifier is DyTox's divergence classifier. The old logits are those of a copy of the network,
    because its encoder trains on. "tune" freezes the encoder: embedding and spatial attention.
    """

    name = "dytox"
    title = "DyTox"
    shares_first_task = False
    Options: ClassVar[type] = DyToxOptions
    training_only: ClassVar[tuple[str, ...]] = ("teacher.", "model.expertise")
    ignores: ClassVar[tuple[str, ...]] = (LATER_HEADS,)

    def __init__(self, config: Config, stream: ClassStream) -> None:
        Method.__init__(self, config, stream)  # another network than that of Expansion
        if config.network.backbone is not None:
            raise LabError(
                "dytox trains its encoder with every task, so network.backbone, which is frozen, is not for it."
            )
        self.model: DyToxViT = DyToxViT(config.network, stream.shape, stream.mean, stream.std)
        self.set_precision()
        self.teacher: DyToxViT | None = None

    def stages(self, task: Task) -> list[Stage]:
        """Those of every method with memory; "tune" perhaps without shuffling."""
        shuffle = self.options.shuffle_tune
        return [replace(s, shuffle=shuffle) if s.name == "tune" else s for s in super().stages(task)]

    def grow(self, task: Task) -> None:
        """A token and a classifier; old ones are frozen, the network as it is becomes the teacher."""
        if task.number == 1:
            super().grow(task)
        else:
            self.teacher = frozen(self.model)
            self.model.add_task(len(task.new))

    def tune(self) -> None:
        """What reads the encoder trains; the teacher has done its work and goes."""
        self.teacher = None
        self.model.tune_readouts()

    def prepare(self, task: Task, stage: Stage, batches: Iterator[Batch]) -> None:
        """Nothing stays the same in "tune": the block of class attention trains."""

    def losses(self, batch: Batch, task: Task, stage: Stage) -> dict[str, Tensor]:
        """The weighted terms by name."""
        if stage.name == "stem":
            return self.stem_losses(batch)
        output = self.model(batch.images)
        if stage.name == "tune":
            return {"classification": self.classification(output.logits, batch.labels)}
        if self.teacher is not None:
            with torch.no_grad():
                output = output._replace(old_logits=self.teacher(batch.images).logits)
        return self.objective(output, batch.labels, task)

    def compute_literally(self, images: Tensor) -> Tensor:
        """One prediction as the equations are written."""
        return self.model.classifier(self.model.readouts_literally(images))

    def network_to_keep(self) -> list[nn.Module]:
        """What predicts: without teacher and divergence classifier."""
        return [*self._stem, self.model.experts, self.model.later, self.model.classifier]

    def network_settings(self) -> dict[str, Any]:
        """The transformer's sizes and choices; it has the heads of the first expert alone."""
        return super().network_settings() | {"heads": [self.config.network.heads_of(1)]}

    def task_state(self, task: Task) -> dict[str, Tensor]:
        """The whole network: it changes with every task."""
        return Method.task_state(self, task)
