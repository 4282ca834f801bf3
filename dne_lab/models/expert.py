"""The parameters of one task expert. How they are used stands in `block` (normal path) and `literal` (as printed).

All weights that split into heads are stored head by head, so that expert t's head i is the slice i of them.
"""

import functools
from collections.abc import Iterator
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
    """

    def __init__(self, width: int, heads: int, outputs: int, gated: bool, neighbourhood: bool) -> None:
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
                self._look_around(heads)

    @torch.no_grad()
    def _look_around(self, heads: int) -> None:
        """The first heads, up to 9, start on one cell each of a 3 x 3 neighbourhood (ConViT's local start)."""
        assert self.position is not None
        for head in range(min(heads, 9)):
            dx, dy = head // 3 - 1, head % 3 - 1
            self.position[head] = torch.tensor([2.0 * dx, 2.0 * dy, -1.0])


class TaskAttentionParameters(nn.Module):
    """One task attention block (eq. 19-23).

    ``w_q``, ``w_k`` (D_in, D_in), ``w_v`` (H, D_in, D_out), ``b_v`` (H, D_out), ``scale`` = lambda (H_t,), read as
    q = z @ w_q, k = z @ w_k, v_j = z_j @ w_v[j] + b_v[j]. lambda starts at H, so that uniform attention starts as one
    linear layer over all heads.
    """

    def __init__(self, heads: int, all_heads: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.w_q = small(inputs, inputs)
        self.w_k = small(inputs, inputs)
        self.w_v = small(all_heads, inputs, outputs)
        self.b_v = nn.Parameter(torch.zeros(all_heads, outputs))
        self.scale = nn.Parameter(torch.full((heads,), float(all_heads)))


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
        self.attention = AttentionParameters(attention_width, heads, width, gated, neighbourhood=not later)
        self.norm2 = nn.LayerNorm(width)
        self.mix1 = self._mixing(later and variant.task1, place, head, ratio * head)
        self.norm_hidden = nn.LayerNorm(ratio * width) if network.hidden_norm else None
        self.mix2 = self._mixing(later and variant.task2, place, ratio * head, head)
        self.lateral: nn.Parameter | None = None
        if later and variant.lateral:
            start = torch.zeros(head * place.all_heads, width)
            start[-width:] = torch.eye(width)
            self.lateral = nn.Parameter(start)

    @staticmethod
    def _mixing(task: bool, place: Place, inputs: int, outputs: int) -> "TaskAttentionParameters | nn.Linear":
        if task:
            return TaskAttentionParameters(place.heads, place.all_heads, inputs, outputs)
        return small_linear(inputs * place.heads, outputs * place.heads)


class Expert(nn.Module):
    """The parameters of one task expert: patch and position embedding, class token, blocks, last norm."""

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
