"""What the controls decide: signs, which seeds may judge, and one family for all."""

from typing import Any

import pytest
from invented import runs

from dne_lab.claims import reasons
from dne_lab.claims.evidence import AGREES, CONTRADICTS, OPEN, Evidence, Judgement
from dne_lab.claims.reasons import REASONS
from dne_lab.measure.record import Record


def controlled(method: str, values: tuple[float, ...], **options: Any) -> list[Record]:
    hashed = str((method, options)).encode().hex()[:64].ljust(64, "0")
    return runs(method, values, config={"options": options}, config_sha256=hashed, settings_sha256=hashed)


def judged(says: str, *records: list[Record]) -> list[Judgement]:
    (claim,) = [claim for claim in REASONS if says in claim.says]
    return claim.judge(Evidence([record for some in records for record in some]))


DNE = controlled("dne", (80, 82, 84, 83), weights="learned")


@pytest.mark.parametrize(
    ("values", "outcome"), [((70, 71.5, 74, 72.5), AGREES), ((90, 92, 94, 93.5), CONTRADICTS), ((80, 83, 83, 84), OPEN)]
)
def test_a_control_that_must_be_worse(values: tuple[float, ...], outcome: str) -> None:
    (one,) = judged("A = 1/H is worse", DNE, controlled("dne", values, weights="uniform"))
    assert one.outcome == outcome and one.found.startswith("DNE A = 1/H - DNE: ")


def test_a_control_that_must_be_better() -> None:
    sta = controlled("sta", (70, 71, 72, 71), masked="none")
    (one,) = judged("(DPDH) is better", sta, controlled("sta", (60, 61, 62.5, 61), masked="DPDH"))
    assert one.outcome == CONTRADICTS


def test_an_entropy_of_any_size_is_matched() -> None:
    ia = controlled("ia", (70, 71, 72, 71), experts="all")
    (one,) = judged("entropy of STA", ia, controlled("ia", (60, 61, 62.5, 61), entropy=0.97))
    assert one.outcome == AGREES and "97%" in one.found


def test_seeds_that_were_looked_at_judge_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reasons, "LOOKED_AT", {"digits": (0, 1)})
    (one,) = judged("A = 1/H is worse", DNE, controlled("dne", (20, 20, 74, 72), weights="uniform"))
    assert one.found == "DNE A = 1/H - DNE: -10.50 ± 6.35 points, 2 seeds"


def test_only_a_network_as_large_counts_as_one() -> None:
    options: dict[str, Any] = {"config": {"options": {"experts": "all"}}}
    size = {"trainable_by_task": [100_000] * 4}
    near = runs("ia", (70, 71, 72, 71), params={"total": 310_000, **size}, network={"heads": [4, 3]}, **options)
    far = runs("ia", (60, 61, 62, 61), params={"total": 100_000, **size}, settings_sha256="1" * 64, **options)
    (one,) = judged("IA with as many", DNE, near, far)
    assert "0.31 M" in one.found and one.outcome == AGREES


def test_p_is_corrected_over_all_statements_also_those_still_to_be_run() -> None:
    worse = controlled("dne", (70, 71.5, 74, 72.5), weights="uniform")
    (alone,) = judged("A = 1/H is worse", DNE, worse)
    (among,) = judged("A = 1/H is worse", DNE, worse, controlled("dne", (80, 83, 83, 84), experts="first"))
    assert alone.p == among.p and alone.p is not None
    assert alone.adjusted == among.adjusted == pytest.approx(len(REASONS) * alone.p)
    nearly = controlled("dne", (78, 79, 83, 79), weights="uniform")  # p = 0.03 alone
    (one,) = judged("A = 1/H is worse", DNE, nearly)
    assert one.p is not None and one.p < 0.05 and one.outcome == OPEN


def test_one_seed_of_another_protocol_stands_back() -> None:
    other = {"tasks": (6, 4), "heads": [4, 1]}
    alone = [
        *runs("dne", (50,), config={"options": {"weights": "learned"}}, settings_sha256="2" * 64, **other),
        *runs("dne", (90,), config={"options": {"weights": "uniform"}}, settings_sha256="3" * 64, **other),
    ]
    uniform = controlled("dne", (70, 71.5, 74, 72.5), weights="uniform")
    (one,) = judged("A = 1/H is worse", DNE, uniform, alone)
    assert one.outcome == AGREES and one.found.endswith("4 seeds")
    (one,) = judged("A = 1/H is worse", alone)
    assert one.found.endswith("one seed")
