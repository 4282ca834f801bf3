"""Status of the paper's statements: intervals decide, one seed decides nothing, and nothing is typed."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from invented import attention_tables, record

from dne_lab.analysis.decomposition import Decomposition
from dne_lab.analysis.group_tables import LATER
from dne_lab.claims import claims, status
from dne_lab.claims.claims import Claim, compare
from dne_lab.claims.evidence import AGREES, CONTRADICTS, NOT_RUN, OPEN, Evidence, Judgement
from dne_lab.core.errors import LabError
from dne_lab.measure.comparison import is_method
from dne_lab.measure.cost_records import CostRecord
from dne_lab.measure.record import Record

STREAM = [50, 10, 10, 10, 10, 10]


def runs(method: str, values: Sequence[float], k: int = 1, first: int = 12, **changes: Any) -> list[Record]:
    base: dict[str, Any] = {"dataset": "cifar100", "tasks": STREAM, "class_order": list(range(100))}
    base |= {"heads": [first, *[k] * 5]} if method in ("ia", "sta", "dne") else {"heads": [], "network": {"name": "r"}}
    return [record(method, seed, last, **{**base, **changes}) for seed, last in enumerate(values)]


def judged(figure: str, says: str, *records: Sequence[Record], **more: Any) -> list[Judgement]:
    (claim,) = [c for c in claims.CLAIMS if c.figure == figure and says in c.says]
    return claim.judge(Evidence([r for some in records for r in some], **more))


@given(st.floats(-50, 50), st.one_of(st.none(), st.floats(0, 50)))
def test_an_outcome_needs_an_interval_beside_zero(mean: float, width: float | None) -> None:
    told = claims.outcome(mean, width)
    if width is None or mean - width <= 0 <= mean + width:
        assert told == OPEN
    else:
        assert told == (AGREES if mean > 0 else CONTRADICTS)
        assert claims.outcome(-mean, width) != told


@pytest.mark.parametrize(
    ("sta", "expected"),
    [((60, 61, 62), AGREES), ((80, 81, 82), CONTRADICTS), ((69, 72, 72), OPEN), ((60,), OPEN)],
)
def test_figure_4_right(sta: tuple[float, ...], expected: str) -> None:
    (one,) = judged("figure 4 right", "STA", runs("ia", (70, 71, 72)), runs("sta", sta))
    assert one.outcome == expected and one.on == "cifar100, 50 + 10 x 5, 30 epochs" and one.small_scale
    assert ("one seed" in one.found) == (len(sta) == 1)
    assert one.found.startswith("STA (k = 1) - IA (k = 1): ")


def test_what_is_told_apart_alone_may_not_be_within_its_family() -> None:
    """Three rivals: p = 0.029 alone; the other two tell nothing, and 3 x 0.029 is not below 0.05."""
    dne, near = runs("dne", (70, 71, 72)), (63.5, 67.5, 67.0)
    (alone,) = judged("figure 6 a, b; table 1", "above DER", dne, runs("der", near))
    assert alone.outcome == AGREES and alone.p == alone.adjusted and alone.p is not None and 0.02 < alone.p < 0.05
    others = [runs("icarl", (70, 73, 70)), runs("foster", (69, 75, 70))]
    (one,) = judged("figure 6 a, b; table 1", "above DER", dne, runs("der", near), *others)
    assert one.p == alone.p and one.adjusted == pytest.approx(3 * alone.p) and one.outcome == OPEN
    assert one.pooled is not None and one.size == alone.size
    (own,) = judged(
        "figure 6 f",
        "above DER",
        *[
            runs(m, v, tasks=[50, *[2] * 25])
            for m, v in (("dne", (70, 71, 72)), ("der", near), ("icarl", (70, 73, 70)))
        ],
    )
    assert own.outcome == AGREES  # a claim about one rival is a family of its own


def test_what_costs_less_is_no_evidence() -> None:
    dne = runs("dne", (70, 71), flops_literal=100)
    cheap, dear = (runs("ia", (60, 61), k, k, flops_literal=f) for k, f in ((1, 50), (4, 95)))
    says = "above IA that costs as much"
    assert judged("figure 1 right", says, dne, cheap) == []
    assert [j.outcome for j in judged("figure 1 right", says, dne, dear)] == [AGREES]


def test_more_heads() -> None:
    even = [runs("ia", (50 + k, 52 + k), k, k, params={"total": k}) for k in (1, 4, 12)]
    one, two = judged("figure 1 right", "many heads", *even, runs("ia", (99, 99)))
    assert one.outcome == AGREES and one.found.startswith("IA (4 heads each) - IA (1 head each): +3.00 ± 0.00")
    assert two.outcome == AGREES and two.found.startswith("IA (12 heads each) - IA (4 heads each): +8.00 ± 0.00")
    even[2] = runs("ia", (50, 52), 12, 12, params={"total": 12})
    assert [j.outcome for j in judged("figure 1 right", "many heads", *even)] == [AGREES, CONTRADICTS]
    widths = [runs("dne", v, k, params={"total": k}) for k, v in ((1, (70, 71)), (2, (20, 20)), (4, (60, 61)))]
    (two,) = judged("figure 6 a, b; table 1", "gains from more heads", *widths)
    assert two.outcome == CONTRADICTS and "DNE (k = 4) - DNE (k = 1)" in two.found


@pytest.mark.parametrize(
    ("wide", "expected"), [((70.2, 71.1), AGREES), ((75, 76), CONTRADICTS), ((70, 75), OPEN), ((70,), OPEN)]
)
def test_no_gain_from_width(wide: tuple[float, ...], expected: str) -> None:
    networks = [runs("icarl", v, params={"total": n}, network={"width": n}) for n, v in ((10, (70, 71)), (40, wide))]
    (one,) = judged("figure 6 a, b", "do not gain from width", *networks)
    assert one.outcome == expected


def test_rivals_by_step() -> None:
    dne = runs("dne", (70, 71, 72))
    der = runs("der", (60, 61, 63), epochs=170, preset="digits,der-published")
    assert [j.outcome for j in judged("figure 6 a, b; table 1", "above DER", dne, der)] == [AGREES]
    assert judged("table 2", "above DER", dne, der) == [] == judged("figure 6 f", "above DER", dne, der)
    many = {"tasks": [50, *[2] * 25]}
    both = [runs(m, v, **many) for m, v in (("dne", (50, 51)), ("der", (60, 61)))]
    both[0] = runs("dne", (50, 51), **many, heads=[12, *[1] * 25])
    assert [j.outcome for j in judged("figure 6 f", "above DER", *both)] == [CONTRADICTS]


def test_deeper_fosters() -> None:
    made = [runs("foster", (60, 61), network={"backbone": f"resnet{n}"}) for n in (18, 34, 101)]
    found = judged("figure 6 c, d", "deeper backbones", runs("dne", (70, 71)), *made)
    assert [j.outcome for j in found] == [AGREES] * 2


def counts(method: str, k: int | None, values: Sequence[float], step: int = 2) -> CostRecord:
    rows = [{"task": i + 1, "flops_literal": int(v * 1e9)} for i, v in enumerate(values)]
    return CostRecord(method, k, (50, *[step] * (len(values) - 1)), tuple(rows))


def test_counts() -> None:
    dne = counts("dne", 1, [1.0 + 0.1 * i for i in range(26)])
    for base, expected in ((2.0, AGREES), (0.5, CONTRADICTS)):
        der = counts("der", None, [base * (i + 1) for i in range(26)])
        (one,) = judged("figure 6 e", "below DER", costs=[dne, der])
        assert one.outcome == expected and ("above at tasks [2]" in one.found) == (expected == CONTRADICTS)
    assert judged("figure 6 e", "below DER", costs=[dne]) == []
    printed = judged("tables 1 and 2", "printed F", costs=[counts("dne", 1, [1, 1, 1.19, 2, 2, 2.54], 10)])
    assert [(j.outcome, j.found) for j in printed] == [
        (CONTRADICTS, "k = 1, 6 tasks: printed 2.68, counted 2.54 G"),
        (AGREES, "k = 1, 3 tasks: printed 1.19, counted 1.19 G"),
    ]


def attention(method: str, seed: int, share: float) -> Decomposition:
    moment = {
        "labelling": "paper", "images": 4, **attention_tables(),
        "same_patch": {LATER: [share, share - 1, share + 1]},
    }  # fmt: skip
    return Decomposition(
        run=f"{method}-s{seed}", method=method, preset="", dataset="digits", seed=seed, epochs=30, tasks=[4, 2, 2, 2],
        heads=[3, 1, 1, 1], network={}, LA=None, finished=True, images=4, config_sha256="0", code_version="0",
        torch="0", moments={"trained": moment},
    )  # fmt: skip


def test_attention_records() -> None:
    records = [attention(m, s, v + s) for m, v in (("ia", 10.0), ("sta", 20.0)) for s in range(3)]
    (one,) = judged("figure 4 left", "same patch", attention=records)
    assert one.outcome == AGREES and one.found == "STA - IA: +10 ± 0 points, 3 seeds" and one.on == "digits, 4 + 2 x 3"
    assert judged("figure 4 left", "same patch", attention=records[:3]) == []


def test_without_evidence_nothing_is_run_but_what_is_derived() -> None:
    table = status.overview(Evidence())
    assert table[table["status"] != NOT_RUN]["figure"].tolist() == ["section 3"]
    assert len(table) == len(claims.CLAIMS) and len(status.details(Evidence())) == len(table)
    unfinished = [record("ia", done=1), record("sta", done=1), record("sta", validation=0.2), record("ia")]
    assert status.overview(Evidence(unfinished)).equals(table)


def test_a_claim_of_your_own_and_its_row() -> None:
    mine = Claim("my figure", "IA is below DNE", 11, compare(is_method("ia"), is_method("dne"), -1))
    other = Claim("none", "nothing", 3, lambda evidence: [])
    more = {"dataset": "digits100", "tasks": [50, 50], "heads": [3, 1], "class_order": list(range(100))}
    given_ = Evidence(
        [*runs("ia", (60, 61)), *runs("dne", (70, 71)), record("ia", last=80.0, **more), record("dne", **more)]
    )
    table = status.overview(given_, [mine, other])
    assert table["status"].tolist() == ["agrees (1), not told apart (1); small scale", NOT_RUN]
    assert status.details(given_, [mine, other])["status"].tolist() == [AGREES, OPEN, NOT_RUN]


def test_comparisons_of_one_seed_are_counted_beside_others() -> None:
    mine = Claim("my figure", "wide is below DNE", 11, compare(is_method("icarl"), is_method("dne"), -1))
    dne = runs("dne", (70, 71))

    def wide(width: int, *values: float) -> list[Record]:
        return runs("icarl", values, params={"total": width}, network={"name": "resnet18", "width": width})

    both = Evidence([*dne, *wide(16, 60, 61), *wide(32, 62), *wide(64, 63)])
    (told,) = status.overview(both, [mine])["found"]
    assert told.endswith("iCaRL (resnet18, width 16) - DNE (k = 1): -10.00 ± 0.00 points, 2 seeds; 2 more of one seed")
    assert len(status.details(both, [mine])) == 3
    (told,) = status.overview(Evidence([*dne, *(r for w in range(16, 21) for r in wide(w, 60.0))]), [mine])["found"]
    assert told.count("one seed; ") == 3 and told.endswith("; 2 more of one seed")


def test_a_transformer_beside_a_residual_network_is_said() -> None:
    ia = runs("ia", (60, 61), network={"patch": 4})
    der = runs("der", (60, 61), network={"name": "resnet18", "width": 16})
    for rival, expected in (("ia", "agrees; small scale"), ("der", "agrees; small scale, across networks")):
        mine = Claim("my figure", "above", 11, compare(is_method("dne"), is_method(rival)))
        records = [*(ia if rival == "ia" else der), *runs("dne", (70, 71), network={"patch": 4})]
        assert status.overview(Evidence(records), [mine])["status"].tolist() == [expected]
        assert set(status.details(Evidence(records), [mine])["scale"]) == {expected.removeprefix("agrees; ")}


def test_evidence_is_found_in_folders(tmp_path: Path) -> None:
    one = record()
    for name in ("a.json", "b.json"):  # the same run twice is one
        one.write(tmp_path / name)
    kept = attention("ia", 0, 10.0)
    kept.write(tmp_path / "attention.json")
    found = status.evidence(tmp_path)
    assert list(found.records) == [one] and list(found.attention) == [kept]
    beside = record("ia", 1, config={"options": {"experts": "all"}})  # trained for its controls
    beside.write(tmp_path / "c.json")
    dataclasses.replace(kept, run=beside.id).write(tmp_path / "attention_c.json")
    assert list(status.evidence(tmp_path).attention) == [kept]
    (tmp_path / "c.json").unlink()
    (tmp_path / "attention_c.json").unlink()
    (tmp_path / "notes.json").write_text("{")  # somebody else's
    assert list(status.evidence(tmp_path).records) == [one]
    (tmp_path / "record.json").write_text((tmp_path / "a.json").read_text()[:-20])
    with pytest.raises(LabError, match=r"record\.json"):
        status.evidence([tmp_path])
    with pytest.raises(LabError, match="does not exist: name a folder that holds records"):
        status.evidence(tmp_path / "none")
