"""Figures 1, 4 and 6, cost growth, forgetting, step time: tables, marks, what is printed and what has no record."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from invented import record, runs
from matplotlib.figure import Figure as Canvas

from dne_lab.core.errors import LabError
from dne_lab.measure import cost_records, paper
from dne_lab.measure.record import Record
from dne_lab.plots import accuracy, tradeoff
from dne_lab.plots.cost_figures import (
    LIMIT,
    LITERAL_TIME,
    NORMAL,
    PRODUCTS,
    TWENTY_SIX,
    cost_growth,
    figure_6e,
    figure_6f,
    read_bench,
    step_time,
)
from dne_lab.plots.figure import PLOTLY_MIME, Figure
from dne_lab.plots.series import NO_RECORD
from dne_lab.plots.style import STYLES

RECORDS = Path(__file__).parents[2] / "figures" / "records"
STREAM = [50, 10, 10, 10, 10, 10]
CIFAR = {"dataset": "cifar100", "preset": "cifar100-b50-10", "epochs": 500, "tasks": STREAM}


def run(method: str, seed: int = 0, last: float = 60.0, first: int = 12, k: int = 1, **changes: Any) -> Record:
    heads = {"heads": [first, *[k] * 5]} if method in ("ia", "sta", "dne") else {"heads": [], "network": {"name": "r"}}
    return record(method, seed, last, **{**CIFAR, "class_order": list(range(100)), **heads, **changes})


def drawn(figure: Figure) -> Any:
    axes = Canvas().add_subplot()
    figure.draw(axes)
    return axes


def legend(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def rows(figure: Figure, **wanted: str) -> Any:
    table = figure.table
    for column, value in wanted.items():
        table = table[table[column] == value]
    return table


# Figures 1 and 6 a to d -------------------------------------------------------------------------------------------


def test_figure_1_takes_ia_with_even_heads_only() -> None:
    runs = [run("ia"), run("ia", first=1), run("ia", 1, 62.0, first=1), run("ia", first=4, k=4), run("dne"), run("sta")]
    figure = tradeoff.figure_1_right(runs)
    assert rows(figure, source="ours")["series"].tolist() == ["IA (1 head each)", "IA (4 heads each)", "DNE (k = 1)"]
    one = rows(figure, series="IA (1 head each)").iloc[0]
    assert (one["LA %"], one["record"], one["F (G)"]) == (61.0, "2 seeds", 0.004)
    missing = rows(figure, record=NO_RECORD)["series"].tolist()
    assert missing == ["IA (12 heads each)", "DER", "DNE (k = 2)", "DNE (k = 4)"]
    assert len(figure.records) == 3 and "small scale" not in figure.title
    assert legend(drawn(figure)) == ["IA", "DNE, printed", "DNE", "DER, printed"]


def test_two_settings_of_one_network_are_named_by_what_differs() -> None:
    runs = [run("dne"), run("dne", epochs=12), run("ia", first=1), run("ia", first=1, epochs=12)]
    named = rows(tradeoff.figure_1_right(runs), source="ours")["series"].tolist()
    wanted = [f"{name}, {number} epochs" for name in ("IA (1 head each)", "DNE (k = 1)") for number in (12, 500)]
    assert sorted(named) == sorted(wanted)


@pytest.mark.parametrize(
    "make", [tradeoff.figure_1_right, tradeoff.figure_6ab, tradeoff.figure_6cd], ids=lambda make: make.__name__
)
@pytest.mark.parametrize("dataset", ["cifar100", "imagenet100"])
def test_printed_numbers_are_the_papers_and_hollow(make: Callable[..., Figure], dataset: str) -> None:
    figure = make([], dataset)
    theirs = rows(figure, record=paper.PRINTED)
    table = paper.tables().query("dataset == @dataset and step == 10")
    for _, row in theirs.iterrows():
        assert ((table["la"] == row["LA %"]) & (table["f_gflops"] == row["F (G)"])).any()
    assert len(theirs) and figure.records == [] and "no record yet" in figure.title
    marks = figure.marks().panels[0].marks
    assert marks and not any(mark.filled for mark in marks) and sum(len(mark.x) for mark in marks) == len(theirs)


def test_figure_6_names_its_panel_and_draws_what_comes() -> None:
    foster = [run("foster", last=50.0, network={"backbone": f"resnet{depth}"}) for depth in (18, 50)]
    runs = [*foster, run("icarl", last=40.0), run("dne"), run("dne", k=2, last=63.0)]
    names = [make(runs, d).name for make in (tradeoff.figure_6ab, tradeoff.figure_6cd)
             for d in ("cifar100", "imagenet100")]  # fmt: skip
    assert names == ["figure_6a", "figure_6b", "figure_6c", "figure_6d"]
    six_c = tradeoff.figure_6cd(runs)
    ours = rows(six_c, source="ours")["series"].tolist()
    assert sorted(ours) == ["DNE (k = 1)", "DNE (k = 2)", "FOSTER, ResNet-18", "FOSTER, ResNet-50"]
    assert "FOSTER, ResNet-50" not in rows(six_c, record=NO_RECORD)["series"].tolist()
    texts = [text.get_text() for text in drawn(six_c).texts]
    assert {"ResNet-18", "ResNet-50", "k = 1", "k = 2"} <= set(texts)
    six_a = tradeoff.figure_6ab(runs)
    assert rows(six_a, method="foster", source="ours")["series"].tolist() == ["FOSTER"]  # the deeper one is c's
    assert rows(six_a, record=NO_RECORD)["series"].tolist() == ["PODNet", "DyTox", "DER", "DNE (k = 4)"]
    # DyTox has heads, but no expert whose k could be named: a record of it fills its row
    named = tradeoff.figure_6ab([*runs, run("dytox", heads=[12])])
    assert "DyTox" in rows(named, source="ours")["series"].tolist()
    assert "DyTox" not in rows(named, record=NO_RECORD)["series"].tolist()


def test_widths_are_named_and_stay_out_of_the_figure_of_backbones() -> None:
    def nets(method: str, *networks: tuple[str, int]) -> list[Record]:
        return [run(method, last=40.0 + w, network={"name": n, "width": w}) for n, w in networks]

    runs = [*nets("icarl", ("resnet18", 16), ("resnet18", 32)), *nets("dytox", ("vit", 1)), run("dne")]
    runs += nets("foster", ("resnet18", 16), ("resnet18", 39), ("resnet34", 16), ("resnet152", 16))
    six_a, six_c = tradeoff.figure_6ab(runs), tradeoff.figure_6cd(runs)
    ours = rows(six_a, source="ours")["series"].tolist()
    assert {"iCaRL, width 16", "iCaRL, width 32", "FOSTER, width 16", "FOSTER, width 39", "DyTox"} <= set(ours)
    assert len(ours) == 6 and {"16", "32"} <= {text.get_text() for text in drawn(six_a).texts}
    backbones = [f"FOSTER, ResNet-{depth}" for depth in (18, 34, 152)]
    assert sorted(rows(six_c, method="foster", source="ours")["series"]) == sorted(backbones)
    assert rows(six_c, record=NO_RECORD)["series"].tolist()[:2] == ["FOSTER, ResNet-50", "FOSTER, ResNet-101"]


def test_other_streams_and_data_sets_are_left_out_and_named() -> None:
    small = record("dne", tasks=(4, 2, 2, 2))
    figure = tradeoff.figure_6ab([small, run("dne")], "digits")
    assert "4 + 2 x 3 classes" in figure.title and "digits, small scale" in figure.title
    assert paper.PRINTED not in figure.table["record"].tolist()  # the paper's data are others
    steps = run("dne", tasks=[50, *[5] * 10], heads=[12, *[1] * 10], last=33.0)
    assert 33.0 not in tradeoff.figure_6ab([steps, run("dne")]).table["LA %"].tolist()


# Figure 4 right, forgetting ---------------------------------------------------------------------------------------


def test_figure_4_right() -> None:
    both = [*runs("ia", (70, 74, 72)), *runs("sta", (69, 70, 68)), *runs("dne", (90,))]
    figure = accuracy.figure_4_right(both)
    assert accuracy.has_pair(both) and not accuracy.has_pair(both[:3])
    row = rows(figure, series=accuracy.DIFFERENCE).iloc[0]
    assert row["LA %"] == pytest.approx(-3.0) and row["record"] == "paired, 3 seeds"
    assert row["+-"] == pytest.approx(4.3026527 * 3**0.5 / 3**0.5)  # -1, -4, -4: sd = root of 3
    assert rows(figure, method="sta", record="seed 1")["LA %"].tolist() == [70.0]
    assert "STA below IA" in figure.title and "small scale" in figure.title and "dne" not in str(figure.records)
    axes = drawn(figure)
    assert "STA - IA = -3.0 ±" in axes.get_xticklabels()[0].get_text()
    low, high = drawn(accuracy.figure_4_right([record("ia", last=70.0), record("sta", last=70.1)])).get_ylim()
    assert high - low >= 5
    with pytest.raises(LabError, match="IA and STA have no finished runs of equal settings"):
        accuracy.figure_4_right(runs("ia", (70,)))


def test_forgetting_per_task() -> None:
    figure = accuracy.forgetting([*runs("ia", (70, 74)), *runs("dne", (80, 80)), record("joint")], ["der"])
    for seed_runs, name in ((runs("ia", (70, 74)), "IA (k = 1)"), (runs("dne", (80, 80)), "DNE (k = 1)")):
        for task in (1, 2, 3):
            lost = [max(row[task - 1] for row in r.accuracy[task - 1 : -1]) - r.accuracy[-1][task - 1]
                    for r in seed_runs]  # fmt: skip
            mine = rows(figure, series=name)
            assert mine[mine["task"] == task]["forgetting"].iloc[0] == pytest.approx(sum(lost) / 2)
    assert rows(figure, record=NO_RECORD)["series"].tolist() == ["DER"] and "joint" not in str(figure.records)
    assert legend(drawn(figure)) == ["IA (k = 1)", "DNE (k = 1)"]
    with pytest.raises(LabError, match=r"several streams \(4 \+ 3 x 2, 4 \+ 2 x 3\)"):
        accuracy.forgetting([record("ia"), record("ia", tasks=(4, 3, 3))])
    with pytest.raises(LabError, match="no finished run of several tasks"):
        accuracy.forgetting([record("joint")])


# Growth -----------------------------------------------------------------------------------------------------------


def costs() -> list[cost_records.CostRecord]:
    return cost_records.find([RECORDS / "cost"])


def test_cost_growth() -> None:
    figure = cost_growth(costs())
    dne = rows(figure, series="DNE (k = 1)")
    by_source = {source: mine.set_index("task")["F (G)"] for source, mine in dne.groupby("source")}
    assert by_source["formula"].tolist() == by_source["literal"].tolist() and len(by_source["spent"]) == 26
    assert by_source["paper"].to_dict() == {6: 2.68, 11: 5.71, 3: 1.19}
    assert by_source["authors' code"][26] == 12.04
    doubtful = rows(figure, source="paper").query("remark != ''")
    assert sorted(zip(doubtful["series"], doubtful["task"], strict=True)) == [
        (f"DNE (k = {k})", task) for k in (1, 2, 4) for task in (3, 11)
    ]
    counted = {cost.label for cost in costs()}
    missing = [name for name in ("DER", "FOSTER", "DyTox") if name not in counted]
    assert rows(figure, record=NO_RECORD)["series"].tolist() == missing
    axes = drawn(figure)
    assert "printed, doubtful" in legend(axes) and axes.get_yscale() == "log"
    with pytest.raises(LabError, match="no cost record: count one"):
        cost_growth([])


def test_figure_6e_and_f_grow_with_records() -> None:
    der, foster = ([cost for cost in costs() if cost.method == name] for name in ("der", "foster"))
    without = [cost for cost in costs() if cost not in [*der, *foster]]
    figure = figure_6e(without)
    assert rows(figure, record=NO_RECORD)["series"].tolist() == ["DER", "FOSTER"]
    more = figure_6e([*without, *der])
    (long,) = (cost.id for cost in der if cost.tasks == TWENTY_SIX)
    assert rows(more, record=NO_RECORD)["series"].tolist() == ["FOSTER"] and long in more.records
    assert NO_RECORD not in figure_6e(costs()).table["record"].tolist()
    lines = {line.get_color() for line in drawn(more).lines}
    assert {STYLES["der"].colour, STYLES["dne"].colour} <= lines
    many = {"tasks": TWENTY_SIX, "heads": [12, *[1] * 25], "dataset": "digits100"}
    six_f = figure_6f([record("dne", **many), record("ia"), record("dne", dataset="digits100")], "digits100")
    assert six_f.name == "figure_6f" and len(six_f.records) == 1
    assert rows(six_f, record=NO_RECORD)["series"].tolist() == ["DER", "FOSTER"]
    with pytest.raises(LabError, match="no finished run"):
        figure_6f([record("dne")])


# The time of a step -----------------------------------------------------------------------------------------------


def test_step_time_and_its_limit(tmp_path: Path) -> None:
    bench = {"train_step": {"6": 4.0}, "seconds": {"train_step_6": 0.5, "train_step_1": 1.0, "inference_6": 9.0},
             "product_share": {"6": 0.8}, "batch": 64, "threads": 2, "device": "cpu"}  # fmt: skip
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(bench))
    figure = step_time(read_bench(file))
    six = figure.table[figure.table["task"] == 6].set_index("what")
    assert six["seconds"].to_dict() == pytest.approx(
        {LITERAL_TIME: 2.0, NORMAL: 0.5, PRODUCTS: 0.4, LIMIT: float("nan")}, nan_ok=True
    )
    assert six.loc[LIMIT, "record"] == NO_RECORD and LIMIT not in legend(drawn(figure))
    known = step_time({**bench, "rates": {"float32": 1e11}, "step_flops": {"1": 4e10, "6": 2e10}})
    limit = known.table[known.table["what"] == LIMIT]
    assert limit["seconds"].tolist() == [0.4, 0.2] and "100 GFLOP/s measured" in known.title
    assert LIMIT in legend(drawn(known)) and known.title.endswith("cpu, 2 threads, 100 GFLOP/s measured")
    on_gpu = step_time({**bench, "device_type": "cuda", "device": "GPU", "rates": {"float32": 5e13}, "threads": 1})
    assert PRODUCTS not in legend(drawn(on_gpu)) and PRODUCTS in legend(drawn(known))
    assert on_gpu.title.endswith("GPU, 1 thread, 50 TFLOP/s measured")
    file.write_text('{"command": "dne-lab reproduce"}')
    with pytest.raises(LabError, match="is no benchmark"):
        read_bench(file)
    with pytest.raises(LabError, match="does not exist"):
        read_bench(tmp_path / "none.json")


# All of them ------------------------------------------------------------------------------------------------------


def everything() -> list[Figure]:
    runs = [run(m, seed, 50.0 + seed) for m in ("ia", "sta", "dne", "der", "foster") for seed in range(2)]
    bench = read_bench(RECORDS / "timing" / "bench.json")
    return [
        *(make(runs) for make in (tradeoff.figure_1_right, tradeoff.figure_6ab, tradeoff.figure_6cd)),
        *(make(runs) for make in (accuracy.figure_4_right, accuracy.forgetting)),
        *(make(costs()) for make in (cost_growth, figure_6e)),
        step_time(bench),
    ]


def test_bundles_are_plain_and_the_same_every_time(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    for one, two in zip(everything(), everything(), strict=True):
        first = one._repr_mimebundle_()[0]
        assert set(first) == {"text/plain", PLOTLY_MIME} and repr(one) == repr(two)
        text = json.dumps(first[PLOTLY_MIME], allow_nan=False)
        assert "bdata" not in text and first[PLOTLY_MIME]["data"]
        (pdf,) = one.save(tmp_path / f"{one.name}.pdf")
        assert pdf.read_bytes().startswith(b"%PDF") and one.csv() == two.csv()
        assert first == two._repr_mimebundle_()[0]
    assert one.image() == two.image()
