"""Ablation records as tables: means over the seeds of a setting, with intervals over seeds or, for one, over images."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dne_lab.analysis.ablation_record import AblationRecord
from dne_lab.analysis.cutter import HOW
from dne_lab.errors import LabError
from dne_lab.measure.groups import TITLES
from dne_lab.measure.metrics import interval

if TYPE_CHECKING:
    import pandas as pd

Setting = tuple[str, str, str]  # preset, method, how


def settings(found: Iterable[AblationRecord]) -> dict[Setting, list[AblationRecord]]:
    """Records by preset, method and how, each ordered by seed.

    Raises:
        LabError: two of the same run, or numbers of images that differ within a setting.
    """
    made: dict[Setting, list[AblationRecord]] = {}
    order = {method: place for place, method in enumerate(TITLES)}
    found = sorted(found, key=lambda r: (r.preset, HOW.index(r.how), order.get(r.method, len(order)), r.method, r.seed))
    for record in found:
        made.setdefault((record.preset, record.method, record.how), []).append(record)
    for members in made.values():
        seeds, images = [m.seed for m in members], {m.images for m in members}
        if len(set(seeds)) < len(seeds) or len(images) > 1:
            raise LabError(
                f"ablation records of {members[0].run}: seeds {seeds} with {sorted(images)} images cannot be averaged. "
                "Give one record a seed, all of the same number of images."
            )
        if len({(len(m.groups), len(m.sweep)) for m in members}) > 1:
            raise LabError(
                f"ablation records of {members[0].preset}, {members[0].method}, {members[0].how}: different "
                f"things were removed, so they cannot be averaged. {AblationRecord.AGAIN}"
            )
    return made


def group_table(found: Iterable[AblationRecord]) -> "pd.DataFrame":
    """One row for each removal from the later experts' attention.

    Returns:
        Columns preset, method, how, ``kind``, ``removed``, ``experts`` ("later": all of them at once), ``seeds``,
        ``images``, ``before %`` accuracy, ``loss`` in percentage points with its ``+-`` (95%, over ``interval``: seeds,
        Student's t; of a single seed over images), ``changed %`` of the answers, ``mass %`` of the rows' attention that
        was removed, ``empty rows``, and ``loss task 1`` ...
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for setting, members in settings(found).items():
        for parts in _aligned(members, "groups"):
            of = _mean(parts)
            by_task = zip(*(part["by task"] for part in parts), strict=True)
            rows.append(
                _first(setting)
                | {"kind": parts[0]["kind"], "removed": parts[0]["removed"], "experts": parts[0]["expert"] or "later"}
                | {"seeds": len(members), "images": members[0].images}
                | {"before %": sum(m.accuracy["all"] for m in members) / len(members)}
                | _loss(parts)
                | {"changed %": of("changed %"), "mass %": of("mass %"), "empty rows": int(of("empty rows"))}
                | {f"loss task {i}": sum(values) / len(values) for i, values in enumerate(by_task, start=1)}
            )
    return pd.DataFrame(rows)


WHERE = ("preset", "method", "kind", "removed", "experts")


def side_by_side(found: Iterable[AblationRecord]) -> "pd.DataFrame":
    """One row for each removal, with what is lost in each way of removing it that there are records of.

    Returns:
        Columns preset, method, ``kind``, ``removed``, ``experts``, ``seeds``, ``images``, ``before %``, ``mass %`` as
        in `group_table`, then for each way ("mean", "zero", "mask") the loss in percentage points, by the way's name,
        and its ``+-``, by the name and " +-"; empty where nothing is left to scale up. Seeds and images are those of
        the first way.
    """
    import pandas as pd

    table = group_table(found)
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in table.to_dict("records"):
        key = tuple(row[name] for name in WHERE)
        kept = {name: row[name] for name in (*WHERE, "seeds", "images", "before %", "mass %")}
        rows.setdefault(key, kept)
        rows[key] |= {row["how"]: row["loss"], f"{row['how']} +-": row["+-"]}
    known = [*TITLES, *table["method"]]
    rows = dict(sorted(rows.items(), key=lambda item: (item[0][0], known.index(item[0][1]))))  # stable
    columns = [name for how in HOW if how in set(table["how"]) for name in (how, f"{how} +-")]
    return pd.DataFrame(list(rows.values()), columns=[*WHERE, "seeds", "images", "before %", "mass %", *columns])


def sweep_table(found: Iterable[AblationRecord]) -> "pd.DataFrame":
    """One row for each connection, as `Sweep.table`, in the columns of `group_table`.

    Raises:
        LabError: no record with connections between experts.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for setting, members in settings(found).items():
        for parts in _aligned(members, "sweep"):
            of = _mean(parts)
            rows.append(
                _first(setting)
                | {name: parts[0][name] for name in ("kind", "layer", "expert", "reads")}
                | {"seeds": len(members), "images": members[0].images}
                | _loss(parts)
                | {name: of(name) for name in ("own loss", "changed %", "mean |logit change|", "mass %")}
            )
    if not rows:
        raise LabError("these ablation records hold no connection between experts: take runs of sta or dne.")
    return pd.DataFrame(rows)


def _first(setting: Setting) -> dict[str, Any]:
    return dict(zip(("preset", "method", "how"), setting, strict=True))


def _aligned(members: Sequence[AblationRecord], name: str) -> Iterable[tuple[dict[str, Any], ...]]:
    return zip(*(getattr(member, name) for member in members), strict=True)


def _mean(parts: Sequence[dict[str, Any]]) -> Callable[[str], float]:
    return lambda name: sum(part[name] for part in parts) / len(parts)


def _loss(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    mean, width = interval([part["loss"] for part in parts])
    over = "images" if width is None else "seeds"
    return {"loss": mean, "+-": parts[0]["+-"] if width is None else width, "interval": over}
