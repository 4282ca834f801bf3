"""The complexity formula counts every operation of the literal path, for every variant, and what follows from it."""

import json
from pathlib import Path

import pytest
import tiny

from dne_lab.core import presets
from dne_lab.core.errors import LabError
from dne_lab.measure import cost, cost_formula, cost_records
from dne_lab.models import literal
from dne_lab.models.variants import DNE, IA, PROGRESSIVE, STA

COSTS = Path(__file__).parents[2] / "figures" / "records" / "cost"
BY_NAME = {variant.name: variant for variant in (IA, STA, DNE, PROGRESSIVE)}


@pytest.mark.parametrize("style", [*tiny.STYLES, {"spatial": "gpsa", "readout": "cls_token"}], ids=tiny.names)
@pytest.mark.parametrize("variant", tiny.VARIANTS, ids=tiny.names)
def test_the_formula_is_the_count(variant: tiny.Variant, style: dict) -> None:
    model = tiny.model(variant, (3, 1, 2), **{**tiny.PAPER, **style})
    counted = cost.flops(lambda images: model.classifier(literal.readouts(model, images)), tiny.SHAPE)
    assert cost_formula.total(model.network, variant, model.heads, (2, 2, 2), tiny.SHAPE)[-1] == counted
    terms = cost_formula.expert_terms(model.network, variant, model.heads, tiny.SHAPE)
    assert terms[0].task_attention == terms[0].lateral == 0  # expert 1 is a plain transformer
    without = cost_formula.total(model.network, variant, model.heads, shape=tiny.SHAPE)
    assert without == [sum(t.total for t in terms[: n + 1]) for n in range(3)]
    assert counted - without[-1] == 2 * 6 * sum(4 * heads for heads in model.heads)  # the classifier


# those of networks that are no transformer of experts follow no formula of ours
@pytest.mark.parametrize("cost_record", [c for c in cost_records.find([COSTS]) if c.k is not None], ids=lambda c: c.id)
def test_the_formula_is_what_the_committed_counts_say(cost_record: cost_records.CostRecord) -> None:
    network = presets.resolve("cifar100-b50-10").network
    assert cost_record.k is not None
    heads = [12, *[cost_record.k] * (len(cost_record.tasks) - 1)]
    sums = cost_formula.total(network, BY_NAME[cost_record.method], heads, cost_record.tasks)
    assert sums == [row["flops_literal"] for row in cost_record.rows]


@pytest.mark.parametrize(("k", "giga"), [(1, 0.067), (4, 0.853), (12, 7.255)])
def test_independent_attention_with_the_same_heads_in_every_expert(k: int, giga: float) -> None:
    config = presets.resolve("cifar100-b50-10", {"network.heads": f"{k},{k}"}, method="ia")
    heads = [config.network.heads_of(task) for task in range(1, 7)]
    total = cost_formula.total(config.network, IA, heads, config.data.tasks)[-1]
    positions = 2 * 3 * 64**2 * sum(heads) * 5  # scores of 5 gated blocks: no image changes them, and F leaves them out
    assert (total + positions) / 1e9 == pytest.approx(giga, abs=0.0005)  # a pass over one image, to the last digit


def test_the_papers_bound_and_ours() -> None:
    assert cost_formula.paper_bound() == 2300

    def order(tasks: int, heads: int, dense: bool) -> int:
        """The paper's order of computation, without its constant, for 196 patches."""
        return tasks * heads * (196 + (tasks * heads if dense else heads))

    dense, independent = ([order(t, h, d) for t in range(1, 2400)] for h, d in ((1, True), (12, False)))
    assert [d < i for d, i in zip(dense, independent, strict=True)].index(False) + 1 == 2300
    network = presets.resolve("cifar100-b50-10").network
    until = cost_formula.cheaper_until(network, DNE, IA)
    both = [cost_formula.total(network, v, [12, *[k] * (until + 1)]) for v, k in ((DNE, 1), (IA, 12))]
    assert both[0][until - 1] < both[1][until - 1] and both[0][until] >= both[1][until]
    with pytest.raises(LabError, match="dne is cheaper up to 5 tasks"):
        cost_formula.cheaper_until(network, DNE, IA, most=5)


def rows(tasks: tuple[int, ...]) -> list[dict[str, int]]:
    return [
        {"task": i + 1, "classes": sum(tasks[: i + 1]), "flops_literal": 10 * i, "flops_spent": 5, "params_total": 7}
        for i in range(len(tasks))
    ]


def test_cost_records_are_found_by_what_they_hold(tmp_path: Path) -> None:
    (tmp_path / "dne-k2-4+2x3.json").write_text(json.dumps(rows((4, 2, 2, 2))))
    (tmp_path / "dne-k2-4+2x1.json").write_text(json.dumps(rows((4, 2))))
    (tmp_path / "der-4+2x1.json").write_text(json.dumps(rows((4, 2))))
    (tmp_path / "joint-resnet-6.json").write_text(json.dumps(rows((6,))))
    (tmp_path / "else.json").write_text('{"method": "dne"}')
    found = cost_records.find([tmp_path])
    assert [(c.label, c.id) for c in found] == [
        ("Joint (ResNet)", "cost-joint-resnet-6"),
        *(("DNE (k = 2)", "cost-dne-k2-4+2x1"), ("DNE (k = 2)", "cost-dne-k2-4+2x3"), ("DER", "cost-der-4+2x1")),
    ]
    assert [len(c.tasks) for c in cost_records.longest(found)] == [1, 4, 2]
    assert cost_records.find([tmp_path / "else.json"]) == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("mine.json", json.dumps(rows((4, 2))), "the name of a cost record says what was counted, e.g. dne-k1-50"),
        ("dne-k1-4+3x1.json", json.dumps(rows((4, 2))), "does not hold the cost of 2 tasks.*--tasks 4,3 --json"),
        ("dne-k1-4+2x1.json", "[", "is damaged: not JSON"),
    ],
)
def test_bad_cost_records(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(LabError, match=message):
        cost_records.read(tmp_path / name)
