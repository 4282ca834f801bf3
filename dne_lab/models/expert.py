"""The parameters of one task expert. How they are used stands in `block` (normal path) and `literal` (as printed).

All weights that split into heads are stored head by head, so that expert t's head i is the slice i of them.
"""

import copy
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, overload

import torch
from torch import Tensor, nn

from dne_lab.core.config import Network
from dne_lab.models.variants import Variant

M = TypeVar("M", bound=nn.Module)


class ModulesOf(nn.ModuleList, Generic[M]):
    """A `torch.nn.ModuleList` whose members all have one type, for type checkers and readers alike."""

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[M]: ...

        @overload
        def __getitem__(self, idx: slice) -> "ModulesOf[M]": ...

        @overload
        def __getitem__(self, idx: int) -> M: ...

        def __getitem__(self, idx: Any) -> Any: ...


class Place(NamedTuple):
    """Where an expert stands: its number (from 1), its heads, the heads of experts 1..number, and the patch grid."""

    number: int
    heads: int
    all_heads: int
    grid: tuple[int, int]
    patch_values: int  # numbers in one patch: channels x patch x patch
    read: tuple[int, ...] | None = None  # places of the earlier experts' heads that it reads; None: all
    owners: tuple[int, ...] = ()  # for each head of experts 1..number that it reads its expert, from 0

    @property
    def heads_read(self) -> int:
        """Heads of experts 1..number that it reads."""
        return self.all_heads if self.read is None else len(self.read) + self.heads


def small(*shape: int) -> nn.Parameter:
    """A parameter drawn from a truncated normal with standard deviation 0.02."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))


def small_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts as a truncated normal 0.02 with zero bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


class AttentionParameters(nn.Module):
    """Query, key and value maps ``qkv`` (3, width, width) as (out, in), no bias, and the output projection ``out``.

    ``width`` is the expert's own width C_t (eq. 12), or the head width D in spatial-task attention, where one map
    serves all heads. With ``gated`` (GPSA): V starts as the identity; ``position`` (heads, 3) scores
    (dx, dy, dx^2 + dy^2); ``gate`` (heads,), the sigmoid of which is the share of the position part, starts at 1.

    ``others`` (projections, 2, width, width): key and value maps for each other expert that is read, or None.
    ``query_bias`` (width,), of a pretrained backbone alone (`dne_lab.models.backbone`), else None.
    """

    def __init__(
        self, width: int, heads: int, outputs: int, gated: bool, neighbourhood: bool, projections: int = 0
    ) -> None:
        super().__init__()
        self.qkv = small(3, width, width)
        self.out = small_linear(outputs, outputs)
        self.position: nn.Parameter | None = None
        self.gate: nn.Parameter | None = None
        if gated:
            with torch.no_grad():
                self.qkv[2] = torch.eye(width)
            self.position = small(heads, 3)
            self.gate = nn.Parameter(torch.ones(heads))
            if neighbourhood:
                self._start_in_neighbourhood(heads)
        self.query_bias: nn.Parameter | None = None
        self.others: nn.Parameter | None = None
        if projections:
            with torch.random.fork_rng(devices=[]):  # all that follows starts as it does without them
                self.others = small(projections, 2, width, width)
            if gated:
                with torch.no_grad():
                    self.others[:, 1] = torch.eye(width)

    @torch.no_grad()
    def _start_in_neighbourhood(self, heads: int) -> None:
        """The first heads, up to 9, start on one cell each of a 3 x 3 neighbourhood (ConViT's local start)."""
        assert self.position is not None
        for head in range(min(heads, 9)):
            dx, dy = head // 3 - 1, head % 3 - 1
            self.position[head] = torch.tensor([2.0 * dx, 2.0 * dy, -1.0])


class TaskAttentionParameters(nn.Module):
    """The parameters of one task attention block (TAB, eq. 19-23): ``mix1`` or ``mix2`` of an `ExpertBlock`.

    ``w_q``, ``w_k`` (D_in, D_in), ``w_v`` (H, D_in, D_out), ``b_v`` (H, D_out), ``scale`` = lambda (H_t,), read as
    q = z @ w_q, k = z @ w_k, v_j = z_j @ w_v[j] + b_v[j]. lambda starts at H, so that uniform attention starts as one
    linear layer over all heads.

    Of a control: ``read`` holds the places of the earlier heads that are read (None: all), and H counts these and the
    expert's own; without learned weights there are no ``w_q`` and ``w_k``, and ``means`` (H_t, H) are the weights
    (None: 1/H). All else starts as it does without the control.
    """

    w_q: nn.Parameter | None
    w_k: nn.Parameter | None
    read: Tensor | None
    means: Tensor | None

    def __init__(
        self,
        heads: int,
        all_heads: int,
        inputs: int,
        outputs: int,
        read: Sequence[int] | None = None,
        learned: bool = True,
    ) -> None:
        super().__init__()
        w_q, w_k = small(inputs, inputs), small(inputs, inputs)
        w_v = small(all_heads, inputs, outputs)
        if read is not None:
            w_v = nn.Parameter(w_v.detach()[[*read, *range(all_heads - heads, all_heads)]])
        self.w_q, self.w_k = (w_q, w_k) if learned else (None, None)
        self.w_v = w_v
        self.b_v = nn.Parameter(torch.zeros(len(w_v), outputs))
        self.scale = nn.Parameter(torch.full((heads,), float(len(w_v))))
        # which they are follows from the variant, so it is no part of a file
        self.register_buffer("read", None if read is None else torch.tensor(read, dtype=torch.long), persistent=False)
        self.register_buffer("means", None)

    @property
    def fixed(self) -> Tensor | None:
        """The weights where they do not depend on the image: (H_t, H), or (1, H) for all heads alike; else None."""
        if self.w_q is not None:
            return None
        return torch.full_like(self.b_v[:, 0], 1 / len(self.w_v))[None] if self.means is None else self.means

    def restricted(self, most: int | None, weights: str) -> "TaskAttentionParameters":
        """A copy that reads its own heads and ``most`` others (None: as many as now), with weights "learned",
        "uniform" or "means"; which others and what means, `take_over` says."""
        made = copy.deepcopy(self)
        own = len(self.scale)
        others = len(self.w_v) - own
        count = others if most is None else min(most, others)
        made.w_v = nn.Parameter(self.w_v.detach()[others - count :].clone(), self.w_v.requires_grad)
        made.b_v = nn.Parameter(self.b_v.detach()[others - count :].clone(), self.b_v.requires_grad)
        if most is not None:
            del made.read
            made.register_buffer("read", torch.arange(count, device=self.w_v.device))
        if weights != "learned":
            made.w_q = made.w_k = None
        if weights == "means":
            made.means = self.b_v.new_full((own, own + count), 1 / (own + count))
        return made

    @torch.no_grad()
    def take_over(self, before: "TaskAttentionParameters", mass: Tensor) -> None:
        """Takes over from what it was before `restricted` the heads that were read most.

        Args:
            mass: (H_t, H before) mean attention over images, patches and nothing else.
        """
        own = len(self.scale)
        others, count = len(before.w_v) - own, len(self.w_v) - own
        most = mass[:, :others].sum(0).topk(count).indices.sort().values
        places = torch.cat([most, torch.arange(others, others + own, device=most.device)])
        self.w_v.copy_(before.w_v[places])
        self.b_v.copy_(before.b_v[places])
        if self.read is not None:
            self.read.copy_(most if before.read is None else before.read[most])
        if self.means is not None:
            left = mass[:, places]
            self.means.copy_(left / left.sum(1, keepdim=True))


class ExpertBlock(nn.Module):
    """One block of one expert.

    ``norm1``, ``attention``, ``norm2``, ``mix1``, ``norm_hidden`` (or None), ``mix2``, and for eq. 11 ``lateral`` (all
    widths, own width). Expert 1 is a plain transformer in every variant.
    """

    def __init__(self, network: Network, variant: Variant, place: Place, last: bool) -> None:
        super().__init__()
        head, heads, ratio = network.head_width, place.heads, network.ratio
        width, later = head * heads, place.number > 1
        self.joint = joint = later and variant.joint
        # Behind the last block only the class token is read, and it looks at content alone.
        gated = network.spatial == "gpsa" and not last
        attention_width = head if joint else width
        self.norm1 = nn.LayerNorm(attention_width)
        self.attention = AttentionParameters(
            attention_width, heads, width, gated, neighbourhood=not later,
            projections=len({*place.owners}) - 1 if joint and variant.projections == "each" else 0,
        )  # fmt: skip
        self.norm2 = nn.LayerNorm(width)
        learned = variant.weights != "uniform"
        self.mix1 = self._mixing(later and variant.task1, place, head, ratio * head, learned)
        self.norm_hidden = nn.LayerNorm(ratio * width) if network.hidden_norm else None
        self.mix2 = self._mixing(later and variant.task2, place, ratio * head, head, learned)
        self.lateral: nn.Parameter | None = None
        if later and variant.lateral:
            start = torch.zeros(head * place.heads_read, width)
            start[-width:] = torch.eye(width)
            self.lateral = nn.Parameter(start)

    @staticmethod
    def _mixing(
        task: bool, place: Place, inputs: int, outputs: int, learned: bool
    ) -> "TaskAttentionParameters | nn.Linear":
        if task:
            return TaskAttentionParameters(place.heads, place.all_heads, inputs, outputs, place.read, learned)
        return small_linear(inputs * place.heads, outputs * place.heads)

    @property
    def task_attention(self) -> dict[str, TaskAttentionParameters]:
        """Its task attention blocks by name."""
        layers = {"mix1": self.mix1, "mix2": self.mix2}
        return {name: layer for name, layer in layers.items() if isinstance(layer, TaskAttentionParameters)}


class Expert(nn.Module):
    """The parameters of one task expert: patch and position embedding, class token, blocks, last norm."""

    read: Tensor | None

    def __init__(self, network: Network, variant: Variant, place: Place) -> None:
        super().__init__()
        self.place = place
        width = network.head_width * place.heads
        self.embed = nn.Linear(place.patch_values, width)
        self.position = small(place.grid[0] * place.grid[1], width)
        self.class_token = small(width)
        self.blocks: ModulesOf[ExpertBlock] = ModulesOf(
            ExpertBlock(network, variant, place, layer == network.depth - 1) for layer in range(network.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.controlled = place.number > 1 and variant.computes_otherwise
        read = None if place.read is None else torch.tensor(place.read, dtype=torch.long)
        self.register_buffer("read", read, persistent=False)

    @property
    def alone(self) -> bool:
        """Whether it runs in a bank of its own: it reads, or looks, in a way that the others do not."""
        tabs = [tab for block in self.blocks for tab in block.task_attention.values()]
        return self.controlled or any(tab.read is not None or tab.fixed is not None for tab in tabs)

    @property
    def frozen(self) -> bool:
        """Whether nothing in it trains."""
        return not any(p.requires_grad for p in self.parameters())


def position_probabilities(position: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    """What positions alone attend to: softmax over patches of ``position`` . (dx, dy, dx^2 + dy^2) (ConViT).

    Args:
        position: (..., heads, 3).
        grid: (rows, columns) of patches, N in all.
        classes: leading class tokens; they take no part: their rows and columns are 0.

    Returns:
        (..., heads, classes + N, classes + N).
    """
    patches = grid[0] * grid[1]
    scores = position @ _offsets(grid, position.device, position.dtype)
    probabilities = scores.unflatten(-1, (patches, patches)).softmax(-1)  # (..., heads, N, N)
    return nn.functional.pad(probabilities, (classes, 0, classes, 0)) if classes else probabilities


@functools.lru_cache(maxsize=16)
def _offsets(grid: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """(3, N x N): dx, dy and dx^2 + dy^2 from each patch to each other one."""
    rows = torch.arange(grid[0], device=device).repeat_interleave(grid[1])
    columns = torch.arange(grid[1], device=device).repeat(grid[0])
    dx, dy = columns[None] - columns[:, None], rows[None] - rows[:, None]
    return torch.stack([dx, dy, dx**2 + dy**2]).to(dtype).flatten(1)  # (3, N, N) -> (3, N x N)
