"""What statements of the paper are judged by, and what a judgement is."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dne_lab.analysis.decomposition import Decomposition
from dne_lab.measure.comparison import Group, groups
from dne_lab.measure.cost_records import CostRecord
from dne_lab.measure.record import Record
from dne_lab.measure.significance import LEVEL, holm

AGREES, CONTRADICTS, OPEN, NOT_RUN = OUTCOMES = ("agrees", "contradicts", "not told apart", "not run")


@dataclass(frozen=True)
class Evidence:
    """What claims are judged by: records of runs, cost records, and attention records.

    ``judged``: what each claim, family, or judge of one, has already found, since a page asks more than once.
    """

    records: Sequence[Record] = ()
    costs: Sequence[CostRecord] = ()
    attention: Sequence[Decomposition] = ()
    groups: list[Group] = field(init=False)
    judged: dict[Any, list["Judgement"]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        used = [record for record in self.records if record.finished and not record.validation]
        made: list[Group] = []
        for dataset in dict.fromkeys(record.dataset for record in used):
            made += groups(record for record in used if record.dataset == dataset)
        object.__setattr__(self, "groups", made)


def corrected(found: Sequence["Judgement"], family: Sequence["Judgement"]) -> list["Judgement"]:
    """The judgements with p adjusted within their family: what is not told apart after that is open."""
    tested = [judgement.p for judgement in family if judgement.p is not None]
    adjusted = dict(zip(tested, holm(tested), strict=True))  # equal p have equal adjusted ones
    made = []
    for judgement in found:
        if judgement.p is None:
            made.append(judgement)
            continue
        p = adjusted[judgement.p]
        made.append(replace(judgement, adjusted=p, outcome=judgement.outcome if p < 1 - LEVEL else OPEN))
    return made


@dataclass(frozen=True)
class Judgement:
    """One comparison: outcome, on which data, what was found (with interval and seeds).

    ``lone``: of one seed; ``across``: a transformer and a residual network, so that the networks differ too. ``p``: of
    the test that decides it (None: one seed, or nothing drawn by chance), ``adjusted``: after Holm's correction within
    the claim's family. ``pooled``: half width of the interval from the standard deviation pooled over methods.
    ``size``: `significance.beside_smallest`.
    """

    outcome: str
    on: str
    found: str
    small_scale: bool = False
    lone: bool = False
    across: bool = False
    p: float | None = None
    adjusted: float | None = None
    pooled: float | None = None
    size: str = ""

    @property
    def marks(self) -> list[str]:
        """What has to be said beside the outcome."""
        return ["small scale"] * self.small_scale + ["across networks"] * self.across
