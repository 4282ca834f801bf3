"""Whether a protocol can tell methods apart: six gates, from its records and those of the instruments."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dne_lab.analysis.ablation_study import EVERYTHING, AblationRecord
from dne_lab.analysis.decomposition import TRAINED, Decomposition
from dne_lab.analysis.read_outs import ALL, FIRST, ProbeRecord, over_images
from dne_lab.analysis.removal import MEAN
from dne_lab.core.errors import LabError
from dne_lab.measure.comparison import Group, even_heads, groups, joint_of, later_heads, other_images, tasks_text
from dne_lab.measure.metrics import interval
from dne_lab.measure.record import Record, images_of
from dne_lab.measure.significance import spread
from dne_lab.measure.trained_controls import options_of
from dne_lab.models.attention import TASK1, TASK2

if TYPE_CHECKING:
    import pandas as pd

MET, NOT_MET, NO_RECORD = "met", "not met", "no record"


@dataclass(frozen=True)
class Gate:
    """One gate of a protocol.

    Attributes:
        name, asks: "G1" to "G6", and what it asks in words.
        value: in percent or percentage points; None without a record.
        half: half the width of its 95% interval over seeds, of one seed over images; None where there is none.
        state: "met", "not met" or "no record".
        seeds: how many the value is of.
        of: which methods, and what else belongs to the value; without a record what is missing.
        records: ids of the runs behind it.
    """

    name: str
    asks: str
    value: float | None
    half: float | None
    state: str
    seeds: int
    of: str
    records: tuple[str, ...] = ()

    @property
    def clear(self) -> bool | None:
        """Whether the interval leaves no doubt about ``state``; None without an interval."""
        if self.value is None or self.half is None:
            return None
        limit, above = LIMITS[self.name]
        low, high = self.value - self.half, self.value + self.half
        return (low > limit or high < limit) if above else (high <= limit or low > limit)

    @property
    def verdict(self) -> str:
        """``state`` as tables show it: "met, not clear" where the interval holds the limit."""
        return f"{self.state}, not clear" if self.clear is False else self.state


# Each gate's limit, and whether it asks for more than that (or for no more).
LIMITS = {
    "G1": (50.0, True),
    "G2": (8.0, True),
    "G3": (5.0, True),
    "G4": (60.0, False),
    "G5": (2.0, True),
    "G6": (1.5, False),
}
ASKS = {
    "G1": "joint learning reaches 50%",
    "G2": "joint is 8 points above replay",
    "G3": "a linear probe of all read-outs is 5 points above expert 1 alone (DNE)",
    "G4": "later experts use at most 60% of their keys (IA)",
    "G5": "task attention replaced by its mean loses more than 2 points (DNE)",
    "G6": "standard deviation of LA over seeds is at most 1.5",
}


def protocols(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by protocol: data set, tasks and the first of their presets; a joint model, which knows no tasks, is in
    every protocol of its data set and preset's family. Runs on validation images are left out."""
    made: dict[str, list[Record]] = {}
    records = [record for record in records if not record.validation]
    for record in records:
        if not record.joint and len(record.tasks) > 1:
            made.setdefault(_protocol(record), []).append(record)
    for record in records:
        for name, members in made.items():
            same = record.dataset == members[0].dataset and not other_images(record, members[0])
            if record.joint and same and _base(record) == _base(members[0]):
                made[name].append(record)
    return made


def gates(
    records: Iterable[Record],
    probes: Iterable[ProbeRecord] = (),
    attention: Iterable[Decomposition] = (),
    ablations: Iterable[AblationRecord] = (),
) -> list[Gate]:
    """The gates G1 to G6 of one protocol.

    Args:
        records: of its runs, of which controls do not count; where a method ran in several settings, the one of one
            head a later expert (and more in the first), then of most seeds, is taken.
        probes, attention, ablations: of any runs; those of these runs count, by id.

    Raises:
        LabError: no run of several tasks, or runs of several protocols.
    """
    by_protocol = protocols(records)
    if len(by_protocol) != 1:
        what = f"several protocols ({'; '.join(by_protocol)})" if by_protocol else "no run of several tasks"
        raise LabError(f"gates are of one protocol, and these records hold {what}.")
    (members,) = by_protocol.values()
    made = [group for group in groups(members) if not options_of(group.first)]
    chosen = {method: _pick(made, method) for method in ("dne", "ia", "replay")}
    return [
        *_of_joint(made, chosen["replay"]),
        _of_probes(chosen["dne"], {probe.run: probe for probe in probes}),
        _of_attention(chosen["ia"], {one.run: one for one in attention}),
        _of_ablation(chosen["dne"], {one.run: one for one in ablations if one.how == MEAN}, attention),
        _of_seeds(made),
    ]


def table(found: Iterable[Gate]) -> "pd.DataFrame":
    """One row per gate: gate, asks, value, ``+-``, state (`Gate.verdict`), seeds, of."""
    import pandas as pd

    rows = [
        {"gate": gate.name, "asks": gate.asks, "value": gate.value, "+-": gate.half, "state": gate.verdict}
        | {"seeds": gate.seeds or "", "of": gate.of}
        for gate in found
    ]
    return pd.DataFrame(rows).astype({"value": float, "+-": float})


def before_stage_2(records: Iterable[Record]) -> "pd.DataFrame":
    """What was predicted before stage 2 of each task: a row per method, means over its tasks 2, 3, ... and seeds.

    Returns:
        Columns method, ``seeds``, ``new %`` and ``old %`` accuracy, and ``old called new %``, how many images of old
        classes were taken for one of the new. No row for a method without stage 2; records made before it was kept
        have none.
    """
    import pandas as pd

    rows = []
    names = {"new": "new %", "old": "old %", "old_called_new": "old called new %"}
    for group in groups(record for record in records if all(_known(record.before_tuning, name) for name in names)):
        recorded = [{name: _known(record.before_tuning, name) for name in names} for record in group.records]
        means = {title: _mean([_mean(early[name]) for early in recorded]) for name, title in names.items()}
        rows.append({"method": group.label, "seeds": len(recorded)} | means)
    return pd.DataFrame(rows, columns=["method", "seeds", *names.values()])


# One by one -----------------------------------------------------------------------------------------------------------


def _gate(name: str, value: float, half: float | None, seeds: int, of: str, records: Sequence[str]) -> Gate:
    limit, above = LIMITS[name]
    # "reaches", "is .. above" and "at most" hold at the limit itself; G5 asks for more
    met = value > limit if name == "G5" else value >= limit if above else value <= limit
    return Gate(name, ASKS[name], value, half, MET if met else NOT_MET, seeds, of, tuple(records))


def _missing(name: str, what: str) -> Gate:
    return Gate(name, ASKS[name], None, None, NO_RECORD, 0, what)


def _of_joint(made: Sequence[Group], replay: Group | None) -> list[Gate]:
    """G1 and G2: how well the network learns, and what is lost by learning in tasks."""
    joint = next((found for group in made if _transformer(group) and (found := joint_of(group, made))), None)
    joint = joint or _pick(made, "joint")
    if joint is None:
        return [_missing("G1", "a joint model of the transformer"), _missing("G2", "joint and replay")]
    last = joint.last_by_seed()
    first = _gate("G1", *interval(list(last.values())), len(last), joint.label, _ids(joint))
    common = [] if replay is None else [seed for seed in last if seed in replay.last_by_seed()]
    if replay is None or not common:
        return [first, _missing("G2", "replay on the transformer, of a seed that joint has")]
    paired = [last[seed] - replay.last_by_seed()[seed] for seed in common]
    of = f"{joint.label} - {replay.label}"
    return [first, _gate("G2", *interval(paired), len(paired), of, _ids(joint, replay))]


def _of_probes(dne: Group | None, probes: dict[str, ProbeRecord]) -> Gate:
    """G3: whether later experts know something that expert 1 does not."""
    mine = _measured(dne, probes)
    if dne is None or not mine:
        return _missing("G3", "for a RUN of DNE: dne-lab report RUN --probe")
    gains, halves = [], []
    for probe in mine:
        every, first = probe.row(ALL)["accuracy"], probe.row(FIRST)["accuracy"]
        gains.append(every - first)
        # as of independent images: the same images make the true one narrower
        halves.append((over_images(every, probe.test_images) ** 2 + over_images(first, probe.test_images) ** 2) ** 0.5)
    mean, half = interval(gains)
    return _gate("G3", mean, halves[0] if half is None else half, len(mine), dne.label, [probe.run for probe in mine])


def _of_attention(ia: Group | None, attention: dict[str, Decomposition]) -> Gate:
    """G4: whether the later experts' attention has learned where to look."""
    mine = [one for one in _measured(ia, attention) if TRAINED in one.moments and len(one.heads) > 1]
    if ia is None or not mine:
        return _missing("G4", "for a RUN of IA: dne-lab report RUN --attention N")
    rows = [one.patches(name="rows").iloc[0] for one in mine]
    shares = [100 * float(row["effective keys"]) / float(row["keys"]) for row in rows]
    mean, half = interval(shares)
    if half is None:
        half = 100 * float(rows[0]["effective keys high"] - rows[0]["effective keys low"]) / 2 / float(rows[0]["keys"])
    keys = sum(float(row["effective keys"]) for row in rows) / len(rows)
    of = f"{ia.label}: {keys:.1f} of {float(rows[0]['keys']):.0f} keys"
    return _gate("G4", mean, half, len(mine), of, [one.run for one in mine])


def _of_ablation(dne: Group | None, ablations: dict[str, AblationRecord], attention: Iterable[Decomposition]) -> Gate:
    """G5: whether it matters what task attention attends to."""
    found = [(one, row) for one in _measured(dne, ablations) if (row := _task_attention(one)) is not None]
    if dne is None or not found:
        return _missing("G5", "for a RUN of DNE: dne-lab report RUN --ablation N (how: mean)")
    mean, half = interval([row["loss"] for _, row in found])
    half = found[0][1]["+-"] if half is None else half
    moved = [row for one in _measured(dne, {one.run: one for one in attention}) for row in one.scale]
    of = dne.label
    if moved:
        low, high = (pick(row[f"lambda / H {name}"] for row in moved) for name, pick in (("low", min), ("high", max)))
        of += f"; lambda / H {low:.2f} to {high:.2f}"
    return _gate("G5", mean, half, len(found), of, [one.run for one, _ in found])


def _of_seeds(made: Sequence[Group]) -> Gate:
    """G6: how much chance there is in the result, pooled over methods."""
    several = [group for group in made if len(group.records) > 1 and not group.first.joint]  # which knows no tasks
    deviation = spread({group.label: group.last_by_seed() for group in several})
    if deviation is None:
        return _missing("G6", "a method with several seeds")
    each = {group.label: spread({group.label: group.last_by_seed()}) for group in several}
    worst = max(each, key=lambda label: getattr(each[label], "value", 0.0))
    largest = each[worst]
    assert largest is not None
    of = f"pooled over {len(several)} methods; largest {largest.value:.2f}, {worst}"
    return _gate("G6", deviation.value, None, max(len(group.records) for group in several), of, _ids(*several))


def _task_attention(one: AblationRecord) -> dict[str, Any] | None:
    """The row of all task attention of all later experts; None in a network without any."""
    rows = [row for row in one.groups if row["removed"] == EVERYTHING and row["expert"] == 0]
    rows = [row for row in rows if {*row["kind"].split(" + ")} <= {TASK1, TASK2}]
    return max(rows, key=lambda row: len(row["kind"]), default=None)


def _pick(made: Sequence[Group], method: str) -> Group | None:
    """The group of a method: the first expert wider than later ones of one head before others, then the most seeds."""
    mine = [group for group in made if group.first.method == method]

    def worth(group: Group) -> tuple[bool, bool, int]:
        return not even_heads(group.first), later_heads(group.first) == 1, len(group.records)

    return max(mine, key=worth, default=None)


def _measured(group: Group | None, found: dict[str, Any]) -> list[Any]:
    """The instruments' records of a group's runs."""
    return [] if group is None else [found[record.id] for record in group.records if record.id in found]


def _transformer(group: Group) -> bool:
    return "patch" in group.first.network and not group.first.joint


def _ids(*several: Group) -> list[str]:
    return [record.id for group in several for record in group.records]


def _base(record: Record) -> str:
    """The family of a preset: ``digits100`` of ``digits100-b50-5,icarl-small``."""
    return record.preset.split(",")[0].split("-b50")[0]


def _protocol(record: Record) -> str:
    preset = record.preset.split(",")[0]
    images = f"{record.dataset} {images_of(record)[:8]}"  # one's own, which a preset does not name, with their digest
    name = preset if preset.startswith(record.dataset) else f"{images} ({preset})" if preset else images
    return f"{name}, {tasks_text(record.tasks)}"


def _known(before_tuning: dict[str, list[float]], name: str) -> list[float]:
    """The percentages of the tasks that have one."""
    return [value for value in before_tuning.get(name, []) if value is not None]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
