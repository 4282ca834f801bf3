"""The one switch: a variant is a row of a table, and the rows differ by the paper's ideas and nothing else."""

from dataclasses import dataclass

from dne_lab.core.errors import unknown
from dne_lab.models.controls import PLAIN, Controls

READS = ("own", "all")
MIXES = ("mlp", "task", "task1", "task2", "linear")
COLUMNS = ("reads", "mixes", *PLAIN)


@dataclass(frozen=True, repr=False)
class Variant(Controls):
    """How expert t >= 2 is connected to the experts before it. Expert 1 is a plain transformer in every variant.

    ``reads``: the keys of spatial attention are the expert's own patches ("own", eq. 12) or every patch of every head
    of all experts up to t ("all", spatial-task attention). ``mixes``: the feature mixing is an MLP ("mlp", eq. 13), two
    task attention blocks ("task", eq. 16-23), only the first or the second of them ("task1", "task2"), or an MLP after
    a linear map of all experts' tokens in front of every block ("linear", eq. 11).

    Further columns, by keyword, are those of `Controls`: what would have to be so if a claim of the paper were true.
    The published rows leave them as they are.
    """

    name: str
    reads: str = "own"
    mixes: str = "mlp"

    def __post_init__(self) -> None:
        for column, names in (("reads", READS), ("mixes", MIXES)):
            if getattr(self, column) not in names:
                raise unknown(f"Variant.{column}", getattr(self, column), names)
        self.check(self.joint, self.task1 or self.task2, self.connected)

    def __repr__(self) -> str:
        controls = "".join(f", {column}={value!r}" for column, value in self.controls.items())
        return f"Variant({self.name!r}, {self.reads!r}, {self.mixes!r}{controls})"

    @property
    def joint(self) -> bool:
        """Keys come from all experts."""
        return self.reads == "all"

    @property
    def task1(self) -> bool:
        """The first linear layer of the mixing is a task attention block."""
        return self.mixes in ("task", "task1")

    @property
    def task2(self) -> bool:
        """The second linear layer of the mixing is a task attention block."""
        return self.mixes in ("task", "task2")

    @property
    def lateral(self) -> bool:
        """A linear map of all experts' tokens stands in front of every block."""
        return self.mixes == "linear"

    @property
    def connected(self) -> bool:
        """Whether any expert reads another one."""
        return self.joint or self.mixes != "mlp"


IA = Variant("ia", "own", "mlp")
STA = Variant("sta", "all", "mlp")
DNE = Variant("dne", "own", "task")
PROGRESSIVE = Variant("progressive", "own", "linear")
