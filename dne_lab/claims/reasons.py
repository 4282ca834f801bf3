"""What has to be so if the paper's reasons are right, each a statement that a trained control decides.

The paper gives reasons beside its figures: attention that fragments, transfer that task attention brings. A reason says
what happens when it alone is taken away; these are claims of this project, judged by the rules of the paper's own.
"""

from collections.abc import Callable
from typing import Any

from dne_lab.claims.claims import Claim, judge_pair
from dne_lab.claims.evidence import NOT_RUN, Evidence, Judgement
from dne_lab.measure import trained_controls
from dne_lab.measure.record import Record
from dne_lab.measure.trained_controls import Control
from dne_lab.methods.base import title_of

NOTEBOOK = 14
# Seeds whose controls had been looked at before these statements were written: they may not judge them.
LOOKED_AT = {"digits100": (0, 1, 2)}
NEAR = 0.05  # a network has as many parameters as another within this share


def fresh(evidence: Evidence) -> list[Record]:
    """The records that may judge."""
    found = [record for group in evidence.groups for record in group.records]
    return [record for record in found if record.seed not in LOOKED_AT.get(record.dataset, ())]


def _controls(evidence: Evidence, method: str) -> list[Control]:
    """The controls of a method that may judge, those of one data set after those of another: what is said of one need
    not tell it from the others."""
    by_data: dict[str, list[Record]] = {}
    for record in fresh(evidence):
        by_data.setdefault(record.dataset, []).append(record)
    return [control for mine in by_data.values() for control in trained_controls.controls(mine).get(method, [])]


def controlled(method: str, sign: int, **options: Any) -> Callable[[Evidence], list[Judgement]]:
    """A judge: LA under a control is above (sign -1: below) that of the method itself.

    Args:
        method: whose control it is.
        sign: 1 or -1.
        options: values of columns of `dne_lab.models.controls.Controls`.
    """

    def judge(evidence: Evidence) -> list[Judgement]:
        return [
            judge_pair(control.pair, sign, (f"{title_of(method)} {control.words}", title_of(method)))
            for control in _controls(evidence, method)
            if trained_controls.options_of(control.pair.one.first) == options
        ]

    return judge


def entropy_matched(evidence: Evidence) -> list[Judgement]:
    """A judge: IA is worse when its attention is spread out as STA's is."""
    return [
        judge_pair(control.pair, -1, (f"IA {control.words}", "IA"))
        for control in _controls(evidence, "ia")
        if trained_controls.options_of(control.pair.one.first).keys() == {"entropy"}
    ]


def as_large(method: str) -> Callable[[Evidence], list[Judgement]]:
    """A judge: DNE is above this method with as many parameters."""

    def judge(evidence: Evidence) -> list[Judgement]:
        found = trained_controls.sizes(fresh(evidence), "dne")
        there = [(c, [g.first.params["total"] for g in (c.pair.one, c.pair.other)]) for c in found]
        return [
            judge_pair(control.pair, 1, ("DNE", control.words))
            for control, (mine, theirs) in there
            if control.pair.other.first.method == method and abs(theirs / mine - 1) < NEAR
        ]

    return judge


_SAID: list[tuple[str, str, Callable[[Evidence], list[Judgement]]]] = [
    ("fragmentation", "STA that never sees other patches of other heads (DPDH) is better",
     controlled("sta", 1, masked="DPDH")),
    ("fragmentation", "STA whose rows give other positions as much as IA's do is better",
     controlled("sta", 1, mass="ia")),
    ("dominance of the same patch", "STA that never sees its own patch in other heads (SPDH) is better",
     controlled("sta", 1, masked="SPDH")),
    ("fragmentation", "IA at the entropy of STA is worse", entropy_matched),
    ("task attention", "DNE with A = 1/H is worse", controlled("dne", -1, weights="uniform")),
    ("task attention", "DNE with the same A for all images is worse", controlled("dne", -1, weights="means")),
    ("dense connections", "DNE that reads expert 1 alone is worse", controlled("dne", -1, experts="first")),
    ("dense connections", "DNE that reads no other expert is worse", controlled("dne", -1, experts="own")),
    ("decoupling", "DNE is above IA with as many parameters", as_large("ia")),
    ("decoupling", "DNE is above STA with as many parameters", as_large("sta")),
    ("task attention", "DNE is above linear connections with as many parameters", as_large("progressive")),
    # No reason of the paper's, but what the first three seeds suggested: it costs 0.6 of DNE's F.
    ("a variant of our own", "DNE with A = 1/H that reads expert 1 alone is better, and costs less",
     controlled("dne", 1, weights="uniform", experts="first")),
]  # fmt: skip


def _decided(judge: Callable[[Evidence], list[Judgement]]) -> Callable[[Evidence], list[Judgement]]:
    """The comparisons of several seeds; those of one seed, which decide nothing, only where there are no others."""

    def decided(evidence: Evidence) -> list[Judgement]:
        if judge not in evidence.judged:  # every reason asks for all of them: they are one family
            found = judge(evidence)
            evidence.judged[judge] = [judgement for judgement in found if judgement.p is not None] or found
        return evidence.judged[judge]

    return decided


def _family(evidence: Evidence) -> list[Judgement]:
    """All of them, also those that are still to be run: each counts as a comparison that finds nothing, so that what
    is told apart now stays so when they are in."""
    family = []
    for _, _, judge in _SAID:
        found = _decided(judge)(evidence)
        tested = any(judgement.p is not None for judgement in found)
        family += found if tested else [*found, Judgement(NOT_RUN, "", "", p=1.0)]
    return family


REASONS = [Claim(reason, says, NOTEBOOK, _decided(judge), _family) for reason, says, judge in _SAID]
