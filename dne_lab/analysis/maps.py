"""Attention maps with their axes: what `probe` yields, joined over forward passes, as NumPy and pandas."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dne_lab.core.errors import LabError, unknown
from dne_lab.models.attention import KINDS, SPATIAL, Axes

if TYPE_CHECKING:
    import pandas as pd


# Which query and which key every entry of an attention map joins: index arrays that follow from its axes alone.

Index = NDArray[np.int32]


class Pairs(NamedTuple):
    """The (query, key) pairs of a map, as whole numbers in arrays that broadcast to its shape without the image axis.

    Experts count from 1, heads within their expert and patches from 0 (row by row); a class token is patch -1. ``grid``
    is (rows, columns) of patches.
    """

    query_expert: Index
    query_head: Index
    query_patch: Index
    key_expert: Index
    key_head: Index
    key_patch: Index
    grid: tuple[int, int]

    @property
    def same_patch(self) -> NDArray[np.bool_]:
        """Query and key are the same patch."""
        return self.query_patch == self.key_patch

    @property
    def same_head(self) -> NDArray[np.bool_]:
        """Query and key are of the same head of the same expert."""
        return (self.query_expert == self.key_expert) & (self.query_head == self.key_head)

    def masked(self, column: str) -> NDArray[np.bool_]:
        """Which pairs are no connection under a variant's ``masked``."""
        groups = {"none": [], "SPDH": [self.same_patch], "DPDH": [~self.same_patch]}
        groups["both"] = groups["SPDH"] + groups["DPDH"]
        chosen = [~self.same_head & group for group in groups[column]]
        none = np.zeros_like(self.same_head & self.same_patch)
        return functools.reduce(np.logical_or, chosen, none)

    def offsets(self) -> tuple[Index, Index]:
        """Rows and columns from the query's patch to the key's (of class tokens: as if they were the first patch)."""
        query, key = (np.maximum(patch, 0) for patch in (self.query_patch, self.key_patch))
        columns = self.grid[1]
        return key // columns - query // columns, key % columns - query % columns


def pairs_of(axes: Axes, shape: Sequence[int]) -> Pairs:
    """The pairs of a map of ``shape`` (with the image axis) whose dimensions mean ``axes``."""
    names = axes.layout.split()

    def along(name: str, values: Sequence[int] | NDArray[Any]) -> Index:
        column = np.asarray(values, dtype=np.int32)
        return column.reshape([-1 if name == other else 1 for other in names])[0]  # its own axis long, all others 1

    token = np.full([1] * (len(names) - 1), -1, dtype=np.int32)
    size = dict(zip(names, shape, strict=True))
    query = (along("h", axes.query_expert), along("h", axes.query_head))
    query_patch = along("p", np.arange(size["p"]) - axes.classes) if "p" in size else token
    key, key_patch = query, query_patch
    if "kh" in size:
        key = (along("kh", axes.key_expert), along("kh", axes.key_head))
    if "kp" in size:
        key_patch = along("kp", np.arange(size["kp"]) - axes.classes)
    if "k" in size:
        patches = axes.grid[0] * axes.grid[1]
        place = np.arange(size["k"]) - axes.classes
        key_patch = along("k", np.where(place < 0, -1, place % patches))
        head = np.maximum(place, 0) // patches
        own = along("k", place) < 0  # the key is the query's own class token
        of_expert, of_head = (along("k", np.asarray(labels)[head]) for labels in (axes.key_expert, axes.key_head))
        key = (np.where(own, query[0], of_expert), np.where(own, query[1], of_head))
    return Pairs(query[0], query[1], query_patch, key[0], key[1], key_patch, axes.grid)


Key = tuple[str, int, int]  # kind, layer, expert
TRANSFORMERLENS = "transformerlens"


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """The attention of one expert's heads at one point.

    Attributes:
        values: probabilities on the CPU, dimensions as ``axes.layout`` names them. The keys are those that the expert
            may see: heads of experts up to its own.
        axes: what the dimensions mean; ``allowed`` is None, as every key is.
    """

    values: Tensor
    axes: Axes

    @property
    def kind(self) -> str:
        """One of `dne_lab.models.attention.KINDS`."""
        return self.axes.kind

    @property
    def layer(self) -> int:
        """The block, from 0."""
        return self.axes.layer

    @property
    def expert(self) -> int:
        """Whose queries these are, from 1."""
        return self.axes.query_expert[0]

    def numpy(self) -> NDArray[Any]:
        """The values as an array of the same memory (bfloat16, which NumPy has not, as float32)."""
        return (self.values.float() if self.values.dtype == torch.bfloat16 else self.values).numpy()

    def frame(self) -> "pd.DataFrame":
        """One row per entry of the map.

        Columns ``kind``, ``layer``, ``image`` (place in what was fed in, from 0), ``query_expert``, ``query_head``,
        ``query_patch``, ``key_expert``, ``key_head``, ``key_patch``, ``attention``. Patches count from 0 row by row, a
        class token is -1 (in timm n tokens before the patches are -n to -1, the class token first). About 50 bytes per
        entry.
        """
        import pandas as pd

        shape = tuple(self.values.shape)
        columns = {name: np.broadcast_to(c, shape).ravel() for name, c in _columns(self.axes, shape).items()}
        kind = np.full(self.values.numel(), KINDS.index(self.kind), dtype=np.int8)
        named = {
            "kind": pd.Categorical.from_codes(kind, categories=pd.Index(KINDS)),
            "layer": np.full(len(kind), self.layer, dtype=np.int32),
        }
        return pd.DataFrame({**named, **columns, "attention": self.numpy().ravel()})

    def __repr__(self) -> str:
        sizes = ", ".join(f"{n} {size}" for n, size in zip(self.axes.layout.split(), self.values.shape, strict=True))
        return f"AttentionMap({self.kind}, layer {self.layer}, expert {self.expert}: {sizes})"


def _columns(axes: Axes, shape: tuple[int, ...]) -> dict[str, NDArray[np.int32]]:
    """The index columns, each of a shape that broadcasts to that of the map."""
    image = np.arange(shape[0], dtype=np.int32).reshape([-1] + [1] * (len(shape) - 1))  # (b, 1, ...)
    pairs = pairs_of(axes, shape)
    return {"image": image} | {name: getattr(pairs, name)[None] for name in pairs._fields if name != "grid"}


class Maps(Sequence[AttentionMap]):
    """`AttentionMap`s in the order layer, kind, expert: one for each, with the images of all forward passes.

    Passes are joined along the image axis where their axes and sizes agree; where they do not, as after `expand`, there
    is one map for each run of passes that do.
    """

    def __init__(self) -> None:
        self._found: dict[Key, list[AttentionMap]] = {}

    def add(self, new: AttentionMap) -> None:
        """Takes what one pass gave for one expert."""
        self._found.setdefault((new.kind, new.layer, new.expert), []).append(new)

    @property
    def bytes(self) -> int:
        """Memory of all values."""
        return sum(found.values.nbytes for parts in self._found.values() for found in parts)

    def _joined(self) -> list[AttentionMap]:
        for key, parts in self._found.items():
            if len(parts) > 1:
                self._found[key] = _join(parts)
        order = sorted(self._found, key=lambda key: (key[1], KINDS.index(key[0]), key[2]))
        return [found for key in order for found in self._found[key]]

    def __len__(self) -> int:
        return len(self._joined())

    @overload
    def __getitem__(self, place: int) -> AttentionMap: ...
    @overload
    def __getitem__(self, place: slice) -> list[AttentionMap]: ...
    def __getitem__(self, place: int | slice) -> AttentionMap | list[AttentionMap]:
        """By place in the order; `get` finds by name."""
        return self._joined()[place]

    def __iter__(self) -> Iterator[AttentionMap]:
        return iter(self._joined())

    def select(self, kind: str | None = None, layer: int | None = None, expert: int | None = None) -> "Maps":
        """Those of a kind, a layer, an expert (None: any); shares memory."""
        chosen = Maps()
        for found in self:
            if kind in (None, found.kind) and layer in (None, found.layer) and expert in (None, found.expert):
                chosen.add(found)
        return chosen

    def get(self, kind: str | None = None, layer: int | None = None, expert: int | None = None) -> AttentionMap:
        """The one map of this kind, layer and expert; what is not needed to tell it may be left out.

        Raises:
            LabError: if there is none, or more than one.
        """
        chosen = self.select(kind, layer, expert)
        if len(chosen) == 1:
            return chosen[0]
        asked = {"kind": kind, "layer": layer, "expert": expert}
        choice = ", ".join(f"{name}={value!r}" for name, value in asked.items() if value is not None) or "no choice"
        there = chosen if len(chosen) else self
        hint = ""
        if len(there):
            last = {"kind": there[-1].kind, "layer": there[-1].layer, "expert": there[-1].expert}
            differs = {name: value for name, value in last.items() if len({getattr(one, name) for one in there}) > 1}
            named = ", ".join(f"{name}={value!r}" for name, value in (differs or last).items())
            hint = f" Choose one, for instance maps.get({named})."
        raise LabError(f"maps.get: {len(chosen)} maps for {choice}.{hint} There are: {there!r}.")

    def names(self, convention: str = "transformerlens") -> dict[str, AttentionMap]:
        """The maps by the names that another library gives them, for code that was written for it.

        "transformerlens": ``blocks.L.attn.hook_pattern``, probabilities (image, head, query, key) as there. Where a
        layer has several experts, theirs is ``blocks.L.expert_E.attn.hook_pattern``; joint, task and class attention,
        which that library has not, say so in place of ``attn`` and keep the dimensions of their ``axes.layout``.

        Raises:
            LabError: another convention, or passes that could not be joined and so would have one name.
        """
        if convention != TRANSFORMERLENS:
            raise unknown("naming convention", convention, [TRANSFORMERLENS])
        several = len({found.expert for found in self}) > 1
        named: dict[str, AttentionMap] = {}
        for found in self:
            expert = f"expert_{found.expert}." if several else ""
            point = "attn" if found.kind == SPATIAL else f"{found.kind}_attn"
            name = f"blocks.{found.layer}.{expert}{point}.hook_pattern"
            if name in named:
                raise LabError(f"maps.names: {name} would name several maps, of passes with other sizes or experts.")
            named[name] = found
        return named

    def frame(self) -> "pd.DataFrame":
        """`AttentionMap.frame` of all, one below the other.

        Raises:
            LabError: if there is no map.
        """
        import pandas as pd

        if not len(self):
            raise LabError("there are no maps: run the network inside `with probe(...) as maps`, with keep=True.")
        return pd.concat([found.frame() for found in self], ignore_index=True)

    def __repr__(self) -> str:
        return f"Maps({', '.join(map(repr, self))})"


def _join(parts: list[AttentionMap]) -> list[AttentionMap]:
    """Parts along the image axis, as long as everything else agrees."""
    runs: list[list[AttentionMap]] = []
    for found in parts:
        if runs and _signature(runs[-1][0]) == _signature(found):
            runs[-1].append(found)
        else:
            runs.append([found])
    return [AttentionMap(torch.cat([p.values for p in run]), run[0].axes) if len(run) > 1 else run[0] for run in runs]


def _signature(attention_map: AttentionMap) -> tuple[Any, ...]:
    a = attention_map.axes
    labels = (a.query_expert, a.query_head, a.key_expert, a.key_head)
    return (a.layout, labels, a.grid, a.classes, a.masked, a.pictures, attention_map.values.shape[1:])


# Where the rows of one expert stand in what an attention point computes for a whole bank.


@dataclass(frozen=True, eq=False)
class Cut:
    """A place in the tensor of a bank.

    Attributes:
        axes: of what is cut out.
        rows: places on the head axis, ``query_dim``.
        keys: leading places on ``key_dim`` that the expert may see; what follows are later experts, exactly 0.
    """

    axes: Axes
    rows: tuple[int, ...]
    query_dim: int
    keys: int | None
    key_dim: int

    def shape(self, whole: Sequence[int]) -> tuple[int, ...]:
        """The shape of what is cut out of a tensor of shape ``whole``."""
        sizes = list(whole)
        sizes[self.query_dim] = len(self.rows)
        if self.keys is not None:
            sizes[self.key_dim] = self.keys
        return tuple(sizes)

    def take(self, whole: Tensor) -> Tensor:
        """The expert's rows and keys, a view where that is possible."""
        first, count = self.rows[0], len(self.rows)
        if self.rows == tuple(range(first, first + count)):
            rows = whole.narrow(self.query_dim, first, count)
        else:
            rows = whole.index_select(self.query_dim, torch.tensor(self.rows, device=whole.device))
        return rows if self.keys is None else rows.narrow(self.key_dim, 0, self.keys)

    def put(self, whole: Tensor, rows: Tensor) -> Tensor:
        """``whole`` with these rows replaced by ``rows``; differentiable in both."""
        missing = whole.shape[self.key_dim] - rows.shape[self.key_dim]
        if missing:
            shape = list(rows.shape)
            shape[self.key_dim] = missing
            rows = torch.cat([rows, rows.new_zeros(shape)], self.key_dim)
        return whole.index_copy(self.query_dim, torch.tensor(self.rows, device=whole.device), rows)


def cut(axes: Axes, expert: int, chosen: Callable[[int], bool]) -> Cut | None:
    """The rows of ``expert``'s heads that ``chosen`` accepts, or None if there are none."""
    names = axes.layout.split()
    queries = list(zip(axes.query_expert, axes.query_head, strict=True))
    rows = tuple(row for row, (owner, head) in enumerate(queries) if owner == expert and chosen(head))
    if not rows:
        return None
    key_dim = next(names.index(name) for name in ("kh", "k", "kp") if name in names)
    own = tuple(axes.query_expert[row] for row in rows), tuple(axes.query_head[row] for row in rows)
    keys, labels = None, own
    if names[key_dim] in ("kh", "k"):  # all experts' heads, in the order of the experts
        visible = sum(owner <= expert for owner in axes.key_expert)
        labels = axes.key_expert[:visible], axes.key_head[:visible]
        keys = visible if names[key_dim] == "kh" else axes.classes + visible * axes.grid[0] * axes.grid[1]
    columns = (axes.masked, axes.pictures)
    mine = Axes(axes.kind, axes.layout, axes.layer, *own, *labels, None, axes.grid, axes.classes, *columns)
    return Cut(mine, rows, names.index("h"), keys, key_dim)
