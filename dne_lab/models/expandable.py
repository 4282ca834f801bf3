"""The one network: a vision transformer that grows by a task expert at a time. A `Variant` says how experts connect."""

import contextlib
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dne_lab.core.config import Network
from dne_lab.core.errors import LabError
from dne_lab.models import backbone
from dne_lab.models.attention import PARAMETERS_OF, AttentionWeights, Axes
from dne_lab.models.bank import Bank, Context, build, linear, norm
from dne_lab.models.block import Block
from dne_lab.models.classifier import ExpandableClassifier
from dne_lab.models.controlled_attention import points
from dne_lab.models.expert import Expert, ModulesOf, Place, TaskAttentionParameters, small_linear
from dne_lab.models.image_model import ImageModel, cut, patch_grid
from dne_lab.models.stem import ConvStem
from dne_lab.models.variants import IA, Variant

FROZEN_BANKS = 4  # beside expert 1 and the newest expert
AT_ONCE = 2**32  # bytes of what the experts of a batch offer to later ones, at all layers
PICTURES = 16  # kept with a model whose experts read other pictures


class Output(NamedTuple):
    """``logits`` (B, classes); ``old_logits`` (B, old classes) of the classifier as the task before left it, or None;
    ``expertise`` (B, new classes + 1) from the newest read-out, class 0 = any old class, or None; ``readouts`` one
    (B, width_t) per expert."""

    logits: Tensor
    old_logits: Tensor | None
    expertise: Tensor | None
    readouts: list[Tensor]


class ExpandableViT(ImageModel):
    """A transformer per task, connected as ``variant`` says; `expand` adds one and freezes the rest (eq. 4-9).

    Args:
        network: sizes and choices.
        shape: (channels, height, width) of the images, which enter as uint8.
        variant: a row of `dne_lab.models.variants`.
        mean, std: of the training images per channel, in units of [0, 1]; the model normalises. With a backbone, those
            that it was trained with.

    Attributes: ``task_classes``, the number of classes that each `expand` or `widen` brought, in their order;
    ``pictures`` (16, C, H, W) uint8, what experts of ``variant.pictures`` other than "same" read from the second one
    on, else None.
    """

    pictures: Tensor | None

    def __init__(
        self,
        network: Network,
        shape: tuple[int, int, int],
        variant: Variant = IA,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        if network.backbone is not None:
            trunk = backbone.check(network, shape)
            mean, std = trunk.mean, trunk.std
        super().__init__(shape, mean, std)
        self.network, self.variant = network, variant
        self.grid = patch_grid(shape, network.patch)
        self.stem = ConvStem(shape, network.patch, mean, std) if network.stem == "conv" else None
        self.blocks: ModulesOf[Block] = ModulesOf(
            Block(i, network, variant, self.grid, points(variant)) for i in range(network.depth)
        )
        self.experts: ModulesOf[Expert] = ModulesOf()
        self.task_classes: tuple[int, ...] = ()
        self.classifier = ExpandableClassifier()
        self.teacher: ExpandableClassifier | None = None
        self.expertise: nn.Linear | None = None
        self.register_buffer("pictures", None)
        self._unrestricted: dict[tuple[int, str], TaskAttentionParameters] = {}  # of the newest expert
        self._banks: tuple[tuple[Any, ...], list[Bank]] | None = None
        self._banks_of: list[Tensor] = []

    @property
    def heads(self) -> tuple[int, ...]:
        """Heads of each expert."""
        return tuple(e.place.heads for e in self.experts)

    def expand(self, heads: int, classes: int) -> None:
        """Adds an expert of ``heads`` heads and ``classes`` classes; everything before it is frozen.

        Structure only. The teacher (`Output.old_logits`) is a frozen copy of the classifier as it is now.
        """
        self._freeze()
        if self.stem is not None:
            self.stem.end()
        read = self.variant.read((*self.heads, heads))
        owners = [t for t, count in enumerate((*self.heads, heads)) for _ in range(count)]
        if read is not None:
            owners = [owners[i] for i in (*read, *range(sum(self.heads), len(owners)))]
        place = Place(
            len(self.experts) + 1,
            heads,
            sum(self.heads) + heads,
            self.grid,
            self.shape[0] * self.network.patch**2 if self.stem is None else self.stem.patch_values,
            read,
            tuple(sorted({*owners}).index(t) for t in owners),
        )
        width = heads * self.network.head_width
        if len(self.experts):
            self.remember()
            self.expertise = small_linear(width, classes + 1)
            if self.variant.pictures != "same" and self.pictures is None:
                self.pictures = torch.zeros((PICTURES, *self.shape), dtype=torch.uint8)
        self._unrestricted = {}
        trunk = self.network.backbone is not None and not len(self.experts)
        self.experts.append(
            backbone.FrozenExpert(self.network, place) if trunk else Expert(self.network, self.variant, place)
        )
        self._grow(classes, width)

    def keep_pictures(self, images: Tensor) -> None:
        """Keeps (n, C, H, W) uint8 images as the other pictures, evenly spaced ones of more than `PICTURES`."""
        assert self.pictures is not None
        chosen = torch.arange(PICTURES, device=images.device) * len(images) // PICTURES
        self.pictures.copy_(images[chosen])

    def restrict_task_attention(self) -> None:
        """Task attention of the newest expert is restricted to what ``variant.most`` and ``variant.weights`` say; to
        which heads and weights follows from data: `choose_most_read`. Structure only."""
        for layer, block in enumerate(self.experts[-1].blocks):
            for name, tab in block.task_attention.items():
                self._unrestricted[layer, name] = tab
                setattr(block, name, tab.restricted(self.variant.most, self.variant.weights))

    @torch.no_grad()
    def choose_most_read(self, batches: Iterable[Tensor]) -> None:
        """After `restrict_task_attention`: the newest expert's task attention takes over what it read most until then,
        over (B, C, H, W) uint8 images."""
        blocks, before = self.experts[-1].blocks, self._unrestricted
        after = {(layer, name): blocks[layer].task_attention[name] for layer, name in before}
        for (layer, name), tab in before.items():
            setattr(blocks[layer], name, tab)
            tab.to(self.mean.device)  # put aside, so it is no part of what has been moved since
        try:
            mass = self.mean_task_attention(batches)
        finally:
            for (layer, name), tab in after.items():
                setattr(blocks[layer], name, tab)
        for place, tab in after.items():
            tab.take_over(before[place], mass[place])
        self._unrestricted = {}

    @torch.no_grad()
    def mean_task_attention(self, batches: Iterable[Tensor]) -> dict[tuple[int, str], Tensor]:
        """Mean over images and patches of the newest expert's task attention, (H_t, H) for each block's number and
        "mix1" or "mix2"."""
        sums: dict[tuple[int, str], Tensor] = {}
        count, number = 0, len(self.experts)

        def add(module: AttentionWeights, inputs: tuple[Any, ...], output: Tensor) -> None:
            axes: Axes = inputs[1]
            if axes.query_expert[-1] == number and axes.kind in PARAMETERS_OF:
                seen = output.sum(0, dtype=torch.float64).mean(0)  # (B, n, h, H) -> (h, H)
                place = axes.layer, PARAMETERS_OF[axes.kind]
                sums[place] = sums.get(place, 0) + seen

        with contextlib.ExitStack() as hooks:
            for part in self.blocks.modules():
                if isinstance(part, AttentionWeights):
                    hooks.callback(part.register_forward_hook(add).remove)
            for images in batches:
                count += len(images)
                self.readouts(images)
        return {place: total / count for place, total in sums.items()}

    def widen(self, classes: int) -> None:
        """Adds classes without an expert (fine-tuning, replay)."""
        self.remember()
        self._grow(classes)

    def _grow(self, classes: int, width: int | None = None) -> None:
        self.classifier.grow(classes, width)
        self.task_classes = (*self.task_classes, classes)
        # What is new takes the device and the type that the model has been moved to; the rest is there.
        for part in (*self.experts[-1:], self.classifier, self.teacher, self.expertise):
            if part is not None:
                part.to(self.mean)
        if self.pictures is not None:
            self.pictures = self.pictures.to(self.mean.device)

    def remember(self) -> None:
        """Keeps a frozen copy of the classifier as the teacher."""
        self.teacher = ExpandableClassifier()
        self.teacher.weights = nn.ParameterList(w.detach().clone() for w in self.classifier.weights)
        self.teacher.bias = nn.Parameter(self.classifier.bias.detach().clone())
        self.teacher.requires_grad_(False)

    def tune_classifier(self) -> None:
        """For "tune": the classifier alone trains; teacher and expertise classifier have done their work and go."""
        self._freeze()
        self.teacher = self.expertise = None
        self.classifier.requires_grad_(True)

    def learn_stem(self, classes: int) -> None:
        """The stem alone trains, with a classifier of its own on the classes of task 1."""
        assert self.stem is not None
        self._freeze()
        self.stem.begin(classes)
        self.to(self.mean)

    def thaw(self) -> None:
        """Everything trains but a backbone, and a stem, which is frozen for good once it has learned."""
        self.requires_grad_(True)
        for expert in self.experts:
            expert.requires_grad_(not isinstance(expert, backbone.FrozenExpert))
        if self.stem is not None:
            self.stem.end()

    def _freeze(self) -> None:
        """Nothing trains, and no gradient of an earlier stage stays in memory."""
        self.requires_grad_(False)
        self.zero_grad(set_to_none=True)

    def forward(self, images: Tensor) -> Output:
        """(B, C, H, W) uint8 images -> `Output`."""
        return self._output(self.readouts(images))

    def forward_newest(self, images: Tensor, offered: Sequence[Tensor]) -> Output:
        """`forward` where the newest expert alone runs; ``offered``: what `offer` gave for these images."""
        return self._output(self._newest(images, offered))

    def _output(self, readouts: list[Tensor]) -> Output:
        old = None
        if self.teacher is not None:
            old = self.teacher([r.detach() for r in readouts[: len(self.teacher.weights)]])
        expertise = None if self.expertise is None else self.expertise(readouts[-1])
        return Output(self.classifier(readouts), old, expertise, readouts)

    def readouts(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) uint8 -> one (B, width_t) read-out per expert, each after the expert's own last norm.

        Where nothing trains and nobody listens, a batch whose layers would fill the memory is computed in parts.
        """
        most = max(1, AT_ONCE // max(1, self.bytes_offered))
        if len(images) > most and not torch.is_grad_enabled() and self.pictures is None and not self.hooked:
            parts = [self.readouts(part) for part in images.split(most)]
            return [torch.cat(column) for column in zip(*parts, strict=True)]
        patches = self.patches(images)
        contexts = self.contexts()
        readouts: list[Tensor] = []
        live = False  # whether anything so far trains
        for bank in self.banks():
            live = live or not bank.frozen
            with torch.set_grad_enabled(torch.is_grad_enabled() and live):
                readouts += self._run(bank, patches, contexts)
        return readouts

    @torch.no_grad()
    def offer(self, images: Tensor, frozen: Sequence[Bank] | None = None) -> tuple[Tensor, ...]:
        """What the frozen experts compute for (B, C, H, W) uint8 images, all that the newest one and the classifiers
        read of them: their read-outs, the heads of every layer, a stem's patches; each (B, ...).

        It stays the same as long as the images and the frozen experts do: `forward_newest` takes it. ``frozen``:
        ``banks()[:-1]``, prepared before where this is compiled: whether they are still right is asked of addresses in
        memory, which is no part of a graph.
        """
        patches = self.patches(images)
        contexts = self.contexts()
        frozen = self.banks()[:-1] if frozen is None else frozen
        readouts = [r for bank in frozen for r in self._run(bank, patches, contexts)]
        heads = [context.so_far(name) for context in contexts for name in self._offers] if readouts else []
        return (*readouts, *heads, *([] if self.stem is None else [patches]))

    def _newest(self, images: Tensor, offered: Sequence[Tensor]) -> list[Tensor]:
        """`readouts` from what the frozen experts offer."""
        patches = self.patches(images) if self.stem is None else offered[-1]
        old = len(self.experts) - 1
        heads = iter(offered[old:])
        contexts = [
            Context(sum(self.heads), {n: next(heads) for n in self._offers} if old else {}) for _ in self.blocks
        ]
        newest = self._build([self.experts[-1]])
        return [*offered[:old], *self._run(newest, patches, contexts)]

    @property
    def _offers(self) -> list[str]:
        """Names of what experts offer to later ones at every layer."""
        v = self.variant
        named = {"tokens": v.lateral, "joint": v.joint, "task1": v.task1, "task2": v.task2}
        return [name for name, offered in named.items() if offered]

    @property
    def bytes_offered(self) -> int:
        """About how many bytes of one image the experts so far offer to later ones while it is computed."""
        v, tokens = self.variant, 1 + self.grid[0] * self.grid[1]
        each = v.lateral + v.joint + v.task1 + self.network.ratio * v.task2  # times the width of a head
        values = each * self.network.depth * tokens * sum(self.heads) * self.network.head_width
        return values * self.mean.element_size()

    @property
    def may_offer(self) -> bool:
        """Whether `forward_newest` does what `forward` does: there are experts before the newest, all frozen, which
        read the same picture, and no hook sees or changes what they compute."""
        old = self.experts[:-1]
        same = type(self).forward is ExpandableViT.forward and type(self).readouts is ExpandableViT.readouts
        same = same and self.pictures is None and not self.hooked
        same = same and not self._forward_hooks and not self._forward_pre_hooks
        return same and len(old) > 0 and not any(p.requires_grad for p in old.parameters())

    @property
    def still(self) -> bool:
        """Whether no expert trains, as where there is a backbone alone: what is learned reads features that stay."""
        return all(expert.frozen for expert in self.experts)

    @property
    def hooked(self) -> bool:
        """Whether a hook sees or changes what is computed within a block, as those of a probe do."""
        return any(m._forward_hooks or m._forward_pre_hooks for m in self.blocks.modules())

    def _run(self, bank: Bank, patches: Tensor, contexts: Sequence[Context]) -> list[Tensor]:
        """All blocks of a bank: (B, N, values of a patch) -> its read-outs."""
        x = self.embed(bank, patches)
        for layer, context in enumerate(contexts):
            x = self.step(bank, layer, x, context)
        return self.read_out(bank, x)

    # The parts of a pass, bank by bank and layer by layer ------------------------------------------------------------

    def contexts(self) -> list[Context]:
        """For each layer what experts offer to later ones: nothing yet."""
        return [Context(sum(self.heads)) for _ in self.blocks]

    def embed(self, bank: Bank, patches: Tensor) -> Tensor:
        """(B, N, values of a patch) -> the bank's tokens in front of the first block, (E, B, N, C)."""
        flat = linear(patches.flatten(0, 1).expand(bank.size, -1, -1), bank.embed)  # (E, B x N, C)
        tokens = flat.view(bank.size, *patches.shape[:2], -1)  # (E, B, N, C)
        return tokens + bank.position.unsqueeze(1)

    def step(self, bank: Bank, layer: int, x: Tensor, context: Context) -> Tensor:
        """One block of a bank, (E, B, n, C) -> the same; the class token joins where its first block is."""
        if layer == (0 if self.network.readout == "cls_token" else len(self.blocks) - 1):
            token = bank.class_token[:, None, None].expand(-1, x.shape[1], 1, -1)
            x = torch.cat([token, x], dim=2)
        return self.blocks[layer](x, bank.layers[layer], bank, context)

    def read_out(self, bank: Bank, x: Tensor) -> list[Tensor]:
        """The bank's tokens after the last block -> one (B, width_t) read-out per expert."""
        out = norm(x[:, : x.shape[1] - bank.pictures, :1], bank.norm, bank.widths(bank.head_width), bank.epsilon)
        found = out.squeeze(2).unbind()
        if bank.real is None:
            return list(found)
        return [o[:, : heads * bank.head_width] for o, heads in zip(found, bank.heads, strict=True)]

    def patches(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> what experts embed, (B, N, values of a patch), in the type of the weights: normalised
        pixels, or what the stem makes of them; after them those of `pictures`, if there are any."""
        self.check(images)
        if self.pictures is not None:
            images = torch.cat([images, self.pictures])
        if self.stem is None:
            return cut(self.normalised(images), self.network.patch)
        return self.stem(images)

    def check(self, images: Tensor) -> None:
        """Raises a `LabError` unless ``images`` is a uint8 batch of this model's size and there is an expert."""
        super().check(images)
        if not len(self.experts):
            raise LabError("the model has no expert yet: call expand(heads, classes) first.")

    def banks(self) -> list[Bank]:
        """Expert 1, up to four banks of later frozen experts, the newest expert, in this order.

        Banks of frozen experts are prepared once and again whenever one of their parameters has changed, in value
        (by an operation that autograd counts), place or type. If an old expert has been thawed by hand, every expert
        is a bank of its own.
        """
        *old, newest = self.experts
        if any(not e.frozen for e in old):
            return [self._build([e]) for e in self.experts]
        used = [p for e in old for p in (*e.parameters(), *e.buffers())]
        hooked = [m.only for block in self.blocks for m in block.modules() if isinstance(m, AttentionWeights)]
        listened_to = frozenset(n for only in hooked for experts_of in only.values() for n in experts_of)
        key = (listened_to, *((p.data_ptr(), p._version, p.dtype) for p in used))
        if self._banks is None or self._banks[0] != key:
            with torch.no_grad():
                frozen = [self._build(group) for group in _groups(old, listened_to)]
            self._banks = (key, frozen)
            # held, so that no other tensor can come to lie at one of these addresses
            self._banks_of = [p.detach() for p in used]
        return [*self._banks[1], self._build([newest])]

    def _build(self, experts: list[Expert]) -> Bank:
        return build(experts, self.network, self.heads, 0 if self.pictures is None else len(self.pictures))

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__() if hasattr(super(), "__getstate__") else self.__dict__
        return {
            **state,
            "_banks": None,
            "_banks_of": [],
            "_unrestricted": {},
        }  # prepared products are no state: a copy prepares its own


def bank_sizes(experts: int) -> list[int]:
    """How many experts each bank of ``experts`` has while nobody listens: expert 1, later frozen ones, the newest."""
    return [1] if experts == 1 else [1, *_sizes(experts - 2), 1]


def _sizes(later: int) -> list[int]:
    """Up to `FROZEN_BANKS` runs of like length of ``later`` frozen experts."""
    count = min(FROZEN_BANKS, (later + 1) // 2)  # for few experts, fewer kernels matter more than padding
    return [later * (i + 1) // count - later * i // count for i in range(count)]


def _groups(old: list[Expert], listened_to: frozenset[int]) -> list[list[Expert]]:
    """Expert 1 alone, the others in up to `FROZEN_BANKS` runs of like length; who is listened to, or reads otherwise
    than the others, leaves its own."""
    later = old[1:]
    cuts = [0, *itertools.accumulate(_sizes(len(later)))]
    alone = [i for i, expert in enumerate(later) if expert.place.number in listened_to or expert.alone]
    cuts = sorted({*cuts, *alone, *(i + 1 for i in alone)})
    return [old[:1]][: len(old)] + [later[a:b] for a, b in itertools.pairwise(cuts)]
