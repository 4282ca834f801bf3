"""What statements of the paper are judged by, and what a judgement is."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dne_lab.analysis.decomposition import Decomposition
from dne_lab.measure.cost_records import CostRecord
from dne_lab.measure.groups import Group, groups
from dne_lab.measure.record import Record

AGREES, CONTRADICTS, OPEN, NOT_RUN = OUTCOMES = ("agrees", "contradicts", "not told apart", "not run")


@dataclass(frozen=True)
class Evidence:
    """What claims are judged by: records of runs, cost records, and attention records."""

    records: Sequence[Record] = ()
    costs: Sequence[CostRecord] = ()
    attention: Sequence[Decomposition] = ()
    groups: list[Group] = field(init=False)

    def __post_init__(self) -> None:
        used = [record for record in self.records if record.finished and not record.validation]
        made: list[Group] = []
        for dataset in dict.fromkeys(record.dataset for record in used):
            made += groups(record for record in used if record.dataset == dataset)
        object.__setattr__(self, "groups", made)


@dataclass(frozen=True)
class Judgement:
    """One comparison: outcome, on which data, what was found (with interval and seeds).

    ``lone``: of one seed; ``across``: a transformer and a residual network, so that the networks differ too.
    """

    outcome: str
    on: str
    found: str
    small_scale: bool = False
    lone: bool = False
    across: bool = False

    @property
    def marks(self) -> list[str]:
        """What has to be said beside the outcome."""
        return ["small scale"] * self.small_scale + ["across networks"] * self.across
