"""What `attention_groups` found, as tables: shares, effective keys and the rest, with references and intervals."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dne_lab.analysis.labelling import GROUPS
from dne_lab.analysis.row_statistics import Sums
from dne_lab.core import shown
from dne_lab.core.errors import LabError, unknown
from dne_lab.measure.metrics import rounded
from dne_lab.measure.tables import brief
from dne_lab.models.attention import JOINT, KINDS, SPATIAL

if TYPE_CHECKING:
    import pandas as pd

    from dne_lab.analysis.row_statistics import Accumulator, Head


FIRST, LATER = "expert 1", "experts >= 2"  # expert 1 is a plain network in every variant: it has its own row
BY = ("layer", "expert", "head")
PATCHES = (SPATIAL, JOINT)  # kinds of attention whose keys are patches


class Estimate(NamedTuple):
    """A number with its 95% interval over images (NaN where there is none)."""

    value: float
    low: float
    high: float


class AttentionGroups:
    """Attention of a data set by group.

    Attributes: ``labels``, ``images`` (how many), ``part`` of the attention, ``shuffled`` (the null model).
    """

    def __init__(self, found: "Accumulator", part: str, shuffled: bool) -> None:
        self._found, self.part, self.shuffled = found, part, shuffled
        self.labelling, self.labels, self.images = found.labelling.name, found.labelling.labels, found.images

    # Tables ----------------------------------------------------------------------------------------------------------

    def table(self, by: str | Sequence[str] = ()) -> "pd.DataFrame":
        """`whole_table` without groups to which there is no connection, such as SPDH in IA."""
        whole = self.whole_table(by)
        return whole[whole["uniform %"] > 0].reset_index(drop=True)

    def plot(self, what: str = "groups") -> Any:
        """A figure: "groups", `table` with the share of each group beside that of uniform attention, or "images",
        `by_image` as boxes.

        Raises:
            LabError: an unknown name; "images" without ``by_image=True``.
        """
        return shown.show(self, "plot", what, instead="table() and by_image()")

    def by_image(self) -> "pd.DataFrame":
        """One row per image, kind, layer and expert: how spread out its attention rows are, on average.

        Returns:
            Columns kind, layer, expert, image (its place, from 0), ``entropy`` (nats) over all keys, ``uniform
            entropy``, ``effective keys`` = exp(entropy) and the number of ``keys``, means over heads and query patches.

        Raises:
            LabError: `attention_groups` was called without ``by_image=True``.
        """
        import pandas as pd

        if not self._found.spread:
            raise LabError("no image was kept apart: call attention_groups(..., by_image=True).")
        made = []
        for kind, layer, expert in sorted(self._found.spread, key=lambda e: (KINDS.index(e[0]), *e[1:])):
            means = torch.cat(self._found.spread[kind, layer, expert]).numpy()
            where: dict[str, Any] = {"kind": kind, "layer": layer, "expert": expert, "image": range(len(means))}
            values = zip(("entropy", "uniform entropy", "effective keys", "keys"), means.T, strict=True)
            made.append(pd.DataFrame(where | dict(values)))
        return pd.concat(made, ignore_index=True)

    def whole_table(self, by: str | Sequence[str] = ()) -> "pd.DataFrame":
        """One row per group: its share of the attention, effective keys and mass per connection.

        Args:
            by: "layer", "expert", "head" or several. Expert 1 and the later experts are always told apart, as are kinds
                of attention.

        Returns:
            Columns kind, scope, those of ``by``, group, ``share %`` of the mass that is not on class tokens,
            ``uniform %`` (the share under uniform attention over what the query can see), ``effective keys``
            = exp(entropy) within the group, averaged over the rows with mass there (NaN: none), ``keys`` of those rows
            there (their effective keys under uniform attention), ``mass per connection %`` and its uniform value, each
            estimate followed by ``low`` and ``high`` of its 95% interval (Poisson bootstrap over images; NaN by head).
        """

        def rows(sums: Sums, drawn: Sums | None) -> list[dict[str, Any]]:
            made = []
            for place, label in enumerate(self.labels):
                one, several = _label(sums, place), None if drawn is None else _label(drawn, place)
                made.append(
                    {"group": label}
                    | _columns("share %", _estimate(_share, one, several))
                    | {"uniform %": float(100 * one["uniform"] / one["weight"])}
                    | _columns("effective keys", _estimate(_keys, one, several))
                    | {"keys": float(one["keys_there"] / one["with_mass"])}
                    | _columns("mass per connection %", _estimate(_per_connection, one, several))
                    | {"uniform mass %": float(100 * one["uniform"] / one["connections"])}
                )
            return made

        return self._frame(by, rows)

    def rows(self, by: str | Sequence[str] = ()) -> "pd.DataFrame":
        """One row for whole attention rows: how spread out they are.

        Returns:
            Columns kind, scope, those of ``by``, ``entropy`` (nats) over all keys, ``effective keys`` = exp(entropy),
            with the number of ``keys`` and its logarithm as references, ``largest %`` entry and 100 / keys, attention
            ``distance`` in patches and that under uniform attention, ``class %`` (mass on class-token keys), each
            estimate with its interval.
        """

        def rows(sums: Sums, drawn: Sums | None) -> list[dict[str, Any]]:
            one, several = sums.by_row, None if drawn is None else drawn.by_row
            mean: Callable[[str, float], Callable[[dict[str, Tensor]], Tensor]] = lambda name, factor: (  # noqa: E731
                lambda s: factor * s[name] / s["rows"]
            )
            return [
                _columns("entropy", _estimate(mean("row_entropy", 1), one, several))
                | {"uniform entropy": float(one["log_connections"] / one["rows"])}
                | _columns("effective keys", _estimate(mean("row_keys", 1), one, several))
                | {"keys": float(one["row_connections"] / one["rows"])}
                | _columns("largest %", _estimate(mean("largest", 100), one, several))
                | {"uniform largest %": float(100 * one["uniform_entry"] / one["rows"])}
                | _columns("distance", _estimate(_distance, one, several))
                | {"uniform distance": float(one["uniform_distance"] / one["weight"])}
                | {"class %": float(100 * one["class_mass"] / one["rows"])}
            ]

        return self._frame(by, rows)

    def share(self, labels: str | Sequence[str], scope: str = LATER, kinds: str | Sequence[str] = PATCHES) -> Estimate:
        """The share in percent of one label or several together, over the later experts' attention to patches.

        ``kinds`` are taken together; the spatial-task attention of STA and the spatial attention of IA are of
        different kinds, and both are attention to patches. NaN where there is none.
        """
        wanted = [labels] if isinstance(labels, str) else list(labels)
        for label in wanted:
            if label not in self.labels:
                raise unknown("group", label, self.labels)
        if scope not in (FIRST, LATER):
            raise unknown("scope", scope, (FIRST, LATER))
        kinds = (kinds,) if isinstance(kinds, str) else kinds
        heads = [h for h in self._found.sums if h[0] in kinds and (h[2] == 1) == (scope == FIRST)]
        if not heads:
            return Estimate(np.nan, np.nan, np.nan)
        sums, drawn = self._total(heads)
        places = [self.labels.index(label) for label in wanted]

        def of(s: Sums) -> Tensor:
            return 100 * s.by_label["mass"][..., places].sum(-1) / s.by_row["weight"]

        return _estimate(of, sums, drawn)

    def same_patch(self, scope: str = LATER) -> Estimate:
        """The share of attention on the query's own patch, SPSH + SPDH, percent (paper, figure 4 left)."""
        if self.labelling != "groups":
            raise LabError(f"same_patch needs labelling='groups'; these are {self.labelling!r}.")
        return self.share(GROUPS[:2], scope)

    def flow(self) -> "pd.DataFrame":
        """Who reads whom in percent, of labelling "experts": a row per kind, layer and expert, a column per expert."""
        if self.labelling != "experts":
            raise LabError(f"flow needs labelling='experts'; these are {self.labelling!r}.")
        table = self.whole_table(by=("layer", "expert"))
        wide = table.pivot(index=["kind", "layer", "expert"], columns="group", values="share %")
        return wide[list(self.labels)].rename_axis(columns=None).reset_index()

    def patch_map(self, label: str, kind: str, layer: int, expert: int, head: int | None = None) -> np.ndarray:
        """The share (0 to 1) of a label at every query patch, (rows, columns), averaged over images and heads.

        Raises:
            LabError: no such map, or `attention_groups` was called without ``by_patch=True``.
        """
        if label not in self.labels:
            raise unknown("group", label, self.labels)
        chosen = [m for h, m in self._found.patches.items() if h[:3] == (kind, layer, expert) and head in (None, h[3])]
        if not chosen:
            why = "" if self._found.patches else " Call attention_groups(..., by_patch=True): no patch was kept apart."
            raise LabError(f"no map of {kind} attention, layer {layer}, expert {expert}.{why}")
        total = torch.stack(chosen).sum(0)
        share = total[:, self.labels.index(label)] / total.sum(-1)
        return share.view(self._found.grid).numpy()  # (rows, columns)

    # As data ---------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The tables as ``{"columns": names, "rows": lists}``, JSON-able with six digits: what a record keeps."""
        tables = {
            "table": self.whole_table(),
            "table_by_layer": self.whole_table("layer"),
            "table_by_expert": self.whole_table("expert"),
            "rows": self.rows(),
            "rows_by_layer": self.rows("layer"),
            "rows_by_expert": self.rows("expert"),
        }
        return {
            "labelling": self.labelling,
            "part": self.part,
            "shuffled": self.shuffled,
            "images": self.images,
            "replicates": self._found.replicates,
            **({} if self.labelling != "groups" else {"same_patch": self._same_patch()}),
            **{name: plain(frame) for name, frame in tables.items()},
        }

    def _same_patch(self) -> dict[str, list[float | None]]:
        return {scope: [rounded(v) for v in self.same_patch(scope)] for scope in (LATER, FIRST)}

    def __repr__(self) -> str:
        what = f"{self.labelling} of {self.images} images" + (", shuffled" if self.shuffled else "")
        return f"AttentionGroups({what})\n{brief(self.table())}"

    def _repr_html_(self) -> str:
        return str(self.table().round(2).to_html(index=False, na_rep="", border=0))

    # Inside ----------------------------------------------------------------------------------------------------------

    def _frame(
        self, by: str | Sequence[str], rows: Callable[[Sums, Sums | None], list[dict[str, Any]]]
    ) -> "pd.DataFrame":
        import pandas as pd

        names = (by,) if isinstance(by, str) else tuple(by)
        for name in names:
            if name not in BY:
                raise unknown("column to group by", name, BY)
        sets: dict[tuple[Any, ...], list[Head]] = {}
        for where in sorted(self._found.sums, key=lambda h: (KINDS.index(h[0]), h[2] == 1, h[1:])):
            kind, layer, expert, head = where
            cells = {"layer": layer, "expert": expert, "head": head}
            key = (kind, FIRST if expert == 1 else LATER, *(cells[name] for name in names))
            sets.setdefault(key, []).append(where)
        made = []
        for key, heads in sets.items():
            first = dict(zip(("kind", "scope", *names), key, strict=True))
            sums, drawn = self._total(heads)
            made += [first | row for row in rows(sums, drawn)]
        return pd.DataFrame(made)

    def _total(self, heads: "Sequence[Head]") -> tuple[Sums, Sums | None]:
        """The sums over heads, and their replicates where whole experts were asked for."""
        found = self._found
        total = torch.stack([found.sums[h] for h in heads]).sum(0)
        experts = {h[:3] for h in heads}
        whole = sum(h[:3] in experts for h in found.sums) == len(heads)
        if not (found.replicates and whole):
            return Sums.of(total), None
        return Sums.of(total), Sums.of(torch.stack([found.drawn[e] for e in experts]).sum(0))


def _label(sums: Sums, place: int) -> dict[str, Tensor]:
    """The sums of one label beside those of whole rows."""
    return {name: values[..., place] for name, values in sums.by_label.items()} | sums.by_row


def _share(s: dict[str, Tensor]) -> Tensor:
    return 100 * s["mass"] / s["weight"]


def _keys(s: dict[str, Tensor]) -> Tensor:
    return s["keys"] / s["with_mass"]  # 0 / 0 = NaN: a group without mass has none


def _per_connection(s: dict[str, Tensor]) -> Tensor:
    return 100 * s["mass"] / s["connections"]


def _distance(s: dict[str, Tensor]) -> Tensor:
    return s["distance"] / s["weight"]


def _estimate(of: Callable[[Any], Tensor], one: Any, several: Any) -> Estimate:
    value = float(of(one))
    if several is None or value != value:
        return Estimate(value, np.nan, np.nan)
    low, high = np.nanquantile(of(several).numpy(), [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def _columns(name: str, estimate: Estimate) -> dict[str, float]:
    bare = name.removesuffix(" %")
    return {name: estimate.value, f"{bare} low": estimate.low, f"{bare} high": estimate.high}


def frame_of(table: dict[str, list[Any]]) -> "pd.DataFrame":
    """The inverse of `plain`."""
    import pandas as pd

    return pd.DataFrame(table.get("rows", []), columns=table.get("columns", []))


def plain(frame: "pd.DataFrame") -> dict[str, list[Any]]:
    """A table as its column names and its rows, six digits."""
    return {"columns": list(frame.columns), "rows": rounded([[*row] for row in frame.itertuples(index=False)])}
