"""What a run loses when its later experts' attention is taken out, group by group and connection by connection."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field

from dne_lab.analysis.ablation import ALL, Tally
from dne_lab.analysis.attention_groups import kinds_with_rows
from dne_lab.analysis.hosts import find_network
from dne_lab.analysis.labelling import GROUPS, groups
from dne_lab.analysis.maps import pairs_of
from dne_lab.analysis.removal import (
    BETWEEN,
    HOW,
    MASK,
    OTHERS,
    Intervention,
    Removal,
    crossing_kinds,
    removal,
    views_of,
)
from dne_lab.analysis.sweep import connections, removals, sweep_rows
from dne_lab.core.errors import LabError, unknown
from dne_lab.core.schema import Like, OneOf, document
from dne_lab.measure.comparison import place_of
from dne_lab.measure.measurement import Measurement, by_setting, options_of, trained
from dne_lab.measure.metrics import interval, rounded
from dne_lab.measure.record import Classes, Name, Number, Percent, Section, Seed, Simple, Some, Whole
from dne_lab.models.attention import CLASS, TASK1, TASK2
from dne_lab.models.expandable import ExpandableViT
from dne_lab.training.run import Run

if TYPE_CHECKING:
    import pandas as pd


OTHER_HEADS = ("SPDH", "DPDH")
FIRST, EVERYTHING = "expert 1", "everything"
TASKS = (TASK1, TASK2)


class Accuracy(Section):
    """Of the intact network, over all and by task."""

    all: Percent
    by_task: list[Percent] = Field(alias="by task")


class _Loss(Section):
    kind: Name
    loss: Number
    spread: Number = Field(alias="+-")
    changed: Number = Field(alias="changed %")
    mass: Number = Field(alias="mass %")


class Removed(_Loss):
    """A row of ``groups``."""

    removed: Name
    expert: Whole
    empty: Whole = Field(alias="empty rows")
    by_task: list[Number] = Field(alias="by task")


class Cut(_Loss):
    """A row of ``sweep``."""

    layer: Whole | Name
    expert: Whole
    reads: Whole
    change: Number = Field(alias="mean |logit change|")
    own_loss: Number = Field(alias="own loss")
    own_spread: Number = Field(alias="own +-")


@document
class AblationRecord(Measurement):
    """What `study` found; accuracies in percent, losses in percentage points, rounded to six digits.

    ``run`` is the id of the run's record, ``LA`` its accuracy; ``accuracy`` that of the intact network on ``images``
    test images, overall and by task. ``groups`` has a row for what was removed from the attention of kind ``kind``
    ("task1 + task2": of both) of ``expert`` (0: of all later experts at once), at all layers; ``removed`` is "SPDH",
    "SPDH + DPDH", .., "everything", or what is read of other experts: "others", all of it, "expert 1", or "between",
    the rest of it; ``by task`` is the loss on each task.
    ``sweep`` has the rows of `Sweep.table`; none where experts do not read each other. ``trained`` tells which training
    the weights come from (`measurement.trained`); records made before it was kept have none.
    """

    ADVICE: ClassVar[str] = "Make it again: dne-lab report RUN --ablation N."

    run: Name
    method: Name
    preset: Name
    dataset: Name
    seed: Seed
    tasks: list[Classes]
    heads: list[Classes]
    LA: Annotated[float, Like(Percent)] | None
    how: Annotated[str, OneOf(HOW)]
    images: Some
    accuracy: Annotated[dict[str, Any], Like(Accuracy)]
    config_sha256: Name
    code_version: Name
    torch: Name
    device: Name
    groups: Annotated[list[dict[str, Any]], Like(Annotated[list[Removed], Field(min_length=1)])]
    sweep: Annotated[list[dict[str, Any]], Like(list[Cut])]
    trained: Simple = field(default_factory=dict)
    options: Simple = field(default_factory=dict)
    kind: str = "ablation"
    format: int = 1

    @property
    def name(self) -> str:
        """A file name that tells it from the others."""
        return f"{self.run}-{self.how}"


def study(
    run: Run, images: int, how: str | Sequence[str] = HOW, batch_size: int = 64, progress: bool = True
) -> list[AblationRecord]:
    """Removes the groups of the later experts' attention, all experts at once and one by one, and every connection.

    Args:
        run: finished, of two tasks or more, with its images.
        images: test images, spread evenly over the classes.
        how: "mean", "zero" or "mask", see `ablate`, or several, which share the passes: a record each. Of one alone
            every connection is also removed kind by kind and layer by layer, of several only in all of them at once.

    Raises:
        LabError: a run that is not finished, has one expert only or none, or whose images are not there; so few images
            that a task has none.
    """
    hows = [how] if isinstance(how, str) else list(how)
    for one in hows:
        if one not in HOW:
            raise unknown("how", one, HOW)
    record = run.record
    if not run.finished:
        raise LabError(f"{run!r} is not finished: train it to its end, then ablate it.")
    network = find_network(run.model, "ablate")
    if len(network.experts) < 2:
        raise LabError(f"{record.id} has one expert: there is no later expert whose attention could be removed.")
    batch = run.stream.test_images(images)
    for task in run.stream:
        if not bool(((batch.labels >= task.new.start) & (batch.labels < task.new.stop)).any()):
            raise LabError(f"{len(batch.index)} test images hold none of task {task.number}: take more (--ablation N).")
    wanted = conditions(network)
    swept = connections(network) if crossing_kinds(views_of(network)) else []
    if len(hows) > 1:  # several ways cost as many passes: each connection at all places at once alone
        swept = [pair for pair in swept if pair[0]["kind"] == ALL] or swept
    # nothing would be left to scale up
    chosen = {how: [pair for pair in wanted if how != MASK or pair[0]["removed"] != EVERYTHING] for how in hows}
    asked = [(taken, how) for how in hows for _, taken in chosen[how] + swept]
    found = iter(removals(network, batch, asked, batch_size, progress))
    made = []
    for one in hows:
        groups = [(where, *next(found)) for where, _ in chosen[one]]
        reads = [next(found) for _ in swept]
        tally = groups[0][1]
        accuracy = {ALL: tally.row(ALL)["before %"]}
        accuracy["by task"] = [tally.row(task)["before %"] for task in range(1, len(tally.counts) + 1)]
        made.append(
            AblationRecord(
                run=record.id, method=record.method, preset=record.preset, dataset=record.dataset, seed=record.seed,
                tasks=record.tasks, heads=list(network.heads), LA=record.LA, how=one, images=len(batch.index),
                accuracy=rounded(accuracy), config_sha256=record.config_sha256, code_version=record.code_version,
                torch=torch.__version__, device=run.device.type, groups=rounded([_row(*group) for group in groups]),
                sweep=rounded(sweep_rows(swept, reads)), trained=trained(record),
                options=options_of(record),
            )
        )  # fmt: skip
    return made


def _row(where: dict[str, Any], tally: Tally, intervention: Intervention) -> dict[str, Any]:
    row = tally.row(ALL)
    by_task = [tally.row(task)["loss"] for task in range(1, len(tally.counts) + 1)]
    measured = {name: row[name] for name in ("after %", "loss", "+-", "changed %", "mean |logit change|")}
    return where | measured | {"mass %": intervention.mass, "empty rows": intervention.empty, "by task": by_task}


def conditions(network: ExpandableViT) -> list[tuple[dict[str, Any], Removal]]:
    """What `study` removes: each group of each kind of attention, those of other heads together, all of it, and other
    experts."""
    views, last = views_of(network), len(network.experts)
    labelling = groups()
    there: dict[str, set[str]] = {}
    for (kind, _, expert), (axes, shape) in views.items():
        if expert > 1:
            pairs = pairs_of(axes, shape)
            rows = (pairs.query_patch >= 0) & (labelling.places(pairs, shape[1:]) < len(GROUPS))
            places = labelling.places(pairs, shape[1:])[rows]
            there.setdefault(kind, set()).update(GROUPS[place] for place in set(places.tolist()))
    chosen: list[tuple[str, dict[str, Any]]] = []
    for kind in kinds_with_rows(list(there), labelling):
        chosen += [(label, {"kind": kind, "group": label}) for label in GROUPS if label in there[kind]]
        if there[kind].issuperset(OTHER_HEADS):
            chosen.append((" + ".join(OTHER_HEADS), {"kind": kind, "group": OTHER_HEADS}))
        chosen.append((EVERYTHING, {"kind": kind}))
    if {*TASKS} <= set(there):
        chosen += [("SPDH", {"kind": TASKS, "group": "SPDH"}), (EVERYTHING, {"kind": TASKS})]
    crossing = crossing_kinds(views)
    chosen += [(OTHERS, {"kind": kind, "reads": OTHERS}) for kind in crossing if kind == CLASS]
    if crossing:
        reads: dict[str, Any] = {OTHERS: OTHERS, FIRST: 1, BETWEEN: BETWEEN}
        chosen += [(name, {"kind": crossing, "reads": source}) for name, source in reads.items()]
    later = range(2, last + 1)
    readers: list[tuple[int, Any]] = [(0, later), *((t, t) for t in later if last > 2)]
    return [
        (
            {"kind": choice["kind"] if isinstance(choice["kind"], str) else " + ".join(choice["kind"])}
            | {"removed": name, "expert": number},
            removal(network, expert=reader, views=views, **choice),
        )
        for name, choice in chosen
        for number, reader in readers
        if not (name == BETWEEN and (number or last) < 3)  # expert 2 has none between the first and itself
    ]


# Ablation records as tables: means over the seeds of a setting, with intervals over seeds or, for one, over images.

Setting = tuple[str, str, str]  # preset, method, how


def settings(found: Iterable[AblationRecord]) -> dict[Setting, list[AblationRecord]]:
    """Records by preset, method and how, each ordered by seed; runs of other settings apart, with these in the preset.

    Raises:
        LabError: two of one setting and seed, or numbers of images that differ within a setting.
    """
    found = sorted(found, key=lambda r: (r.preset, HOW.index(r.how), place_of(r.method), r.seed))
    together = by_setting(found, lambda r: (r.preset, r.method, r.how))
    made = {(preset, method, how): members for (preset, method, how), members in together.items()}
    for members in made.values():
        images = {m.images for m in members}
        if len(images) > 1:
            raise LabError(
                f"ablation records of {members[0].run} and others with {sorted(images)} images cannot be averaged. "
                "Give all of the same number of images."
            )
        if len({(len(m.groups), len(m.sweep)) for m in members}) > 1:
            raise LabError(
                f"ablation records of {members[0].preset}, {members[0].method}, {members[0].how}: different "
                f"things were removed, so they cannot be averaged. {AblationRecord.ADVICE}"
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
        first = {name: row[name] for name in (*WHERE, "seeds", "images", "before %", "mass %")}
        rows.setdefault(key, first)
        rows[key] |= {row["how"]: row["loss"], f"{row['how']} +-": row["+-"]}
    rows = dict(sorted(rows.items(), key=lambda item: (item[0][0], place_of(item[0][1]))))  # stable
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
