"""What a variant may fix beside the paper's ideas, to see what would follow: the columns of controls, and their checks.

The published variants leave them all as they are. How they are computed: `controlled_attention`, `literal_controls`.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from dne_lab.core.errors import LabError, brief, unknown

EXPERTS = ("all", "first", "previous", "own")
WEIGHTS = ("learned", "uniform", "means")
MASKED = ("none", "SPDH", "DPDH", "both")
MASS = ("free", "ia")
PICTURES = ("same", "shuffled", "own")
PROJECTIONS = ("shared", "each")
NAMES = {
    "experts": EXPERTS, "weights": WEIGHTS, "masked": MASKED, "mass": MASS, "pictures": PICTURES,
    "projections": PROJECTIONS,
}  # fmt: skip
COLDEST, HOTTEST = 1e-6, 1e6  # temperatures: scores divided by less than the coldest leave what a float can hold
FASTEST = 1e6  # times the learning rate
EXCLUSIVE = (("mass", "masked"), ("mass", "entropy"), ("temperature", "entropy"))


@dataclass(frozen=True)
class Controls:
    """Base of `Variant`: the columns of controls.

    Of whatever connects experts:

    * ``experts``: beside itself an expert reads all earlier ones ("all"), expert 1 ("first"), the one before it
      ("previous") or none ("own").
    * ``most``: a task attention block reads its own heads and the m heads of other experts that it reads most, found
      after a first quarter of the epochs, in which it reads all; None: all.
    * ``weights`` of a task attention block: "learned" (eq. 19-21), "uniform" (A = 1/H, no queries and keys), "means"
      (learned for a quarter of the epochs, then their means over the images, fixed).
    * ``query_rate``: W_q and W_k of a task attention block learn at this many times the learning rate of the rest.

    Of attention over all experts' patches (reads = "all"):

    * ``masked`` from the first step on: "SPDH" (same position, different head), "DPDH" (different position and head),
      "both" or "none". A class token is one more position.
    * ``mass`` = "ia": a row has the mass on its own position, over all heads, that the softmax over its own head alone
      gives; how the mass is spread within the same and the other positions stays free.
    * ``pictures``: other experts' tokens are of the "same" picture; of another one ("shuffled"); or in their place
      stand the expert's own tokens of as many other pictures ("own"). In training these are others of the batch; a
      frozen expert, and evaluation, read a few that are kept with the model.
    * ``projections``: W_k and W_v are "shared" by all experts that are read, or "each" has its own.

    Of attention between patches, of experts from 2 on: ``temperature`` divides the scores; ``entropy``, between 0 and
    1, is what every row's entropy is brought to by a temperature of its own, as a share of the largest, log(keys). A
    class token that is one more position (readout = "cls_token") is under both; class attention is under neither.
    """

    _: KW_ONLY
    experts: str = "all"
    most: int | None = None
    weights: str = "learned"
    masked: str = "none"
    mass: str = "free"
    pictures: str = "same"
    projections: str = "shared"
    temperature: float = 1.0
    entropy: float | None = None
    query_rate: float = 1.0

    @property
    def controls(self) -> dict[str, Any]:
        """The columns of controls that are not as in the published variants, with their values."""
        return {name: getattr(self, name) for name, plain in PLAIN.items() if getattr(self, name) != plain}

    @property
    def computes_otherwise(self) -> bool:
        """Whether a network under these controls computes something else than without: not under a rate alone."""
        return bool(self.controls.keys() - {"query_rate"})

    @property
    def restricts_task_attention(self) -> bool:
        """Whether task attention is restricted once a first quarter of the epochs has shown what it reads."""
        return self.most is not None or self.weights == "means"

    def read(self, heads: Sequence[int]) -> tuple[int, ...] | None:
        """Of the last of experts with these ``heads``: places of the earlier heads that it reads; None for all."""
        if self.experts == "all" or len(heads) < 2:
            return None
        ends = {"first": (0, heads[0]), "previous": (sum(heads[:-2]), sum(heads[:-1])), "own": (0, 0)}
        return tuple(range(*ends[self.experts]))

    def heads_read(self, heads: Sequence[int]) -> int:
        """How many heads the last of experts with these ``heads`` reads where all of ``experts`` are read."""
        read = self.read(heads)
        return sum(heads) if read is None else len(read) + heads[-1]

    def heads_read_most(self, heads: Sequence[int]) -> int:
        """`heads_read` of task attention once ``most`` has chosen."""
        everyone = self.heads_read(heads)
        return everyone if self.most is None else min(everyone, self.most + heads[-1])

    def check(self, joint: bool, task: bool, connected: bool) -> None:
        """Raises a `LabError` for a value that does not exist, or that a variant cannot have.

        Args:
            joint: whether keys come from all experts.
            task: whether there is a task attention block.
            connected: whether any expert reads another one.
        """
        for column, names in NAMES.items():
            if getattr(self, column) not in names:
                raise unknown(f"Variant.{column}", getattr(self, column), names)
        self._check_numbers()
        if not connected:
            self._not_without(
                ("experts",), "reads = 'all' (as STA has) or a mixes that reads others (task, as DNE has, or linear)"
            )
        if not task:
            self._not_without(("most", "weights", "query_rate"), "mixes = 'task' (as DNE has), 'task1' or 'task2'")
        if not joint:
            self._not_without(("masked", "mass", "pictures", "projections"), "reads = 'all' (as STA has)")
        for one, other in EXCLUSIVE:
            if {one, other} <= self.controls.keys():
                raise LabError(
                    f"Variant.{one} = {getattr(self, one)!r} beside Variant.{other} = {getattr(self, other)!r}: both "
                    "say where attention goes. Give one of them."
                )
        for column in ("pictures", "projections"):
            if self.experts == "own" and column in self.controls:
                raise LabError(
                    f"Variant.{column} = {getattr(self, column)!r}: under Variant.experts = 'own' no other expert is "
                    "read, so it would change nothing. Leave one of them out."
                )
        if self.pictures == "own" and self.projections == "each":
            raise LabError(
                "Variant.pictures = 'own': no other expert is read, so Variant.projections must be 'shared'."
            )

    def _check_numbers(self) -> None:
        most, temperature, entropy = self.most, self.temperature, self.entropy
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 0):
            raise LabError(f"Variant.most = {brief(most)}: must be a whole number of heads from 0, or None for all.")
        if most is not None and self.experts != "all":
            raise LabError(f"Variant.most = {most} chooses among all experts: Variant.experts must be 'all'.")
        if most is not None and self.weights == "uniform":
            raise LabError(f"Variant.most = {most}: nothing is read most under Variant.weights = 'uniform'.")
        if not (_is_number(temperature) and COLDEST <= temperature <= HOTTEST):
            raise LabError(
                f"Variant.temperature = {brief(temperature)}: must be a number from {COLDEST:g} to {HOTTEST:g}."
            )
        if not (_is_number(self.query_rate) and 0 < self.query_rate <= FASTEST):
            raise LabError(
                f"Variant.query_rate = {brief(self.query_rate)}: must be a number above 0 and at most {FASTEST:g}."
            )
        if self.query_rate != 1 and self.weights == "uniform":
            raise LabError("Variant.query_rate: there are no queries and keys under Variant.weights = 'uniform'.")
        if entropy is not None and not (_is_number(entropy) and 0 < entropy <= 1):
            raise LabError(
                f"Variant.entropy = {brief(entropy)}: is a share of log(keys), above 0 and at most 1, or None."
            )

    def _not_without(self, columns: Sequence[str], what: str) -> None:
        for column in columns:
            if column in self.controls:
                raise LabError(f"Variant.{column} = {getattr(self, column)!r} needs {what}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


PLAIN = {field.name: field.default for field in dataclasses.fields(Controls)}
# The columns as a run's options name them; `Variant.reads` and `Variant.mixes` are among them there.
COLUMNS = frozenset(PLAIN) | {"reads", "mixes"}
