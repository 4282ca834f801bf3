"""Attention maps with their axes: what `probe` yields, joined over forward passes, as NumPy and pandas."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dne_lab.analysis.pairs import pairs_of
from dne_lab.errors import LabError
from dne_lab.models.attention import KINDS, Axes

if TYPE_CHECKING:
    import pandas as pd

Key = tuple[str, int, int]  # kind, layer, expert


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
        """One row an entry of the map.

        Columns ``kind``, ``layer``, ``image`` (place in what was fed in, from 0), ``query_expert``, ``query_head``,
        ``query_patch``, ``key_expert``, ``key_head``, ``key_patch``, ``attention``. Patches count from 0 row by row, a
        class token is -1 (in timm n tokens before the patches are -n to -1, the class token first). About 50 bytes an
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
    image = np.arange(shape[0], dtype=np.int32).reshape([-1] + [1] * (len(shape) - 1))
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
        return sum(part.values.nbytes for parts in self._found.values() for part in parts)

    def _joined(self) -> list[AttentionMap]:
        for key, parts in self._found.items():
            if len(parts) > 1:
                self._found[key] = _join(parts)
        order = sorted(self._found, key=lambda key: (key[1], KINDS.index(key[0]), key[2]))
        return [part for key in order for part in self._found[key]]

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
        for part in self:
            if kind in (None, part.kind) and layer in (None, part.layer) and expert in (None, part.expert):
                chosen.add(part)
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
        told = ", ".join(f"{name}={value!r}" for name, value in asked.items() if value is not None) or "no choice"
        there = chosen if len(chosen) else self
        hint = ""
        if len(there):
            last = {"kind": there[-1].kind, "layer": there[-1].layer, "expert": there[-1].expert}
            differs = {name: value for name, value in last.items() if len({getattr(one, name) for one in there}) > 1}
            named = ", ".join(f"{name}={value!r}" for name, value in (differs or last).items())
            hint = f" Choose one, for instance maps.get({named})."
        raise LabError(f"maps.get: {len(chosen)} maps for {told}.{hint} There are: {there!r}.")

    def frame(self) -> "pd.DataFrame":
        """`AttentionMap.frame` of all, one below the other.

        Raises:
            LabError: if there is no map.
        """
        import pandas as pd

        if not len(self):
            raise LabError("there are no maps: run the network inside `with probe(...) as maps`, with keep=True.")
        return pd.concat([part.frame() for part in self], ignore_index=True)

    def __repr__(self) -> str:
        return f"Maps({', '.join(map(repr, self))})"


def _join(parts: list[AttentionMap]) -> list[AttentionMap]:
    """Parts along the image axis, as long as everything else agrees."""
    runs: list[list[AttentionMap]] = []
    for part in parts:
        if runs and _signature(runs[-1][0]) == _signature(part):
            runs[-1].append(part)
        else:
            runs.append([part])
    return [AttentionMap(torch.cat([p.values for p in run]), run[0].axes) if len(run) > 1 else run[0] for run in runs]


def _signature(part: AttentionMap) -> tuple[Any, ...]:
    a = part.axes
    labels = (a.query_expert, a.query_head, a.key_expert, a.key_head)
    return (a.layout, labels, a.grid, a.classes, part.values.shape[1:])
