"""One budget for model and exemplars."""

from pathlib import Path
from typing import Any

from invented import record

from dne_lab.measure import budget, cost_records, paper
from dne_lab.measure.comparison import groups, is_method, pairs

ROOT = Path(__file__).parent.parent.parent
CIFAR = (3, 32, 32)


def test_what_extra_parameters_would_buy_at_the_papers_size() -> None:
    """By the authors' files: DNE 6,797 exemplars (k = 1) and 17,122 (k = 4), IA 547, DER 73,685 more than DyTox."""
    table = paper.authors_code_cost()
    table = table[(table["step"] == "10") & (table["tasks"] == 6)].set_index(["method", "heads_per_task"])
    printed = {key: 1e6 * float(row["params_million"]) for key, row in table.iterrows()}
    smallest = printed["dytox", 12]
    heads = {("dne", 1): 6797, ("dne", 4): 17122, ("ia", 1): 547}
    for key, expected in heads.items():
        assert round(4 * (printed[key] - smallest) / 3072) == expected
        assert budget.bought(printed[key], smallest, CIFAR) in (expected, expected - 1)

    # Ours, which create no parameter that is never used: from the committed counts.
    ours = {c.label: c.rows[-1]["params_total"] for c in cost_records.find([ROOT / "figures" / "records" / "cost"])
            if len(c.tasks) == 6}  # fmt: skip
    least = min(ours.values())
    assert least == ours["DyTox"]
    found = {label: budget.bought(count, least, CIFAR) for label, count in ours.items()}
    assert found["DNE (k = 1)"] == 4 * (ours["DNE (k = 1)"] - least) // 3072 == 6457
    assert round(found["DER"], -1) == 73690 and abs(found["DER"] - 73685) < 3 and found["DyTox"] == 0
    assert 500 < found["IA (k = 1)"] < 547


def test_bytes_of_a_record() -> None:
    run = record("dne", params={"total": 300_000}, memory={"budget": 100, "policy": "shared", "stored": 98})
    assert budget.bytes_of(run) == (1_200_000, 98 * 64)  # digits are 1 x 8 x 8
    assert budget.bytes_of(record("joint")) == (1_200_000, 0)
    assert budget.bytes_of(record(dataset="folder")) is None and budget.bytes_of(record(params={})) is None
    sized = record(dataset="folder", config={"data": {"size": 32}})
    assert budget.bytes_of(sized) == (1_200_000, 100 * 3072)


def test_methods_at_one_total_are_compared_though_their_budgets_differ() -> None:
    def at(method: str, images: int, total: int) -> Any:
        return record(method, memory={"budget": images, "policy": "shared", "stored": images, "bytes": total})

    made = groups([at("dne", 30, 10**6), at("ia", 60, 10**6), at("dne", 60, 2 * 10**6)])
    (pair,) = pairs(made, is_method("dne"), is_method("ia"))
    assert pair.one.first.memory["budget"] == 30
    assert len({group.label for group in made}) == 3
