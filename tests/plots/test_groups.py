"""From an analysis, a run or a folder of records to a picture in one step."""

import math
from pathlib import Path

import pytest
import torch
from invented import record
from tiny import images, model

import dne_lab as lab
from dne_lab.core.errors import LabError
from dne_lab.data.stream import Batch
from dne_lab.models.variants import DNE, IA, STA
from dne_lab.plots.groups import entropy_over_images
from dne_lab.plots.matrices import heads_read

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "figures" / "records"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_groups_are_drawn_without_those_that_cannot_be(tmp_path: Path) -> None:
    own = lab.attention_groups(model(IA), images(4), progress=False)
    later = own.table()[own.table()["scope"] == "experts >= 2"]
    assert set(own.whole_table()["group"]) == {"SPSH", "SPDH", "DPSH", "DPDH"}
    assert "SPDH" not in set(later["group"][later["kind"] == "spatial"]) or (later["uniform %"] > 0).all()
    assert (own.table()["uniform %"] > 0).all() and len(own.table()) < len(own.whole_table())
    groups = lab.attention_groups(model(STA), images(4), progress=False)
    figure = groups.plot()
    assert figure.table.equals(groups.table()) and figure.save(tmp_path / "x.pdf", width=3.3)
    assert (tmp_path / "x.pdf").read_bytes().startswith(b"%PDF")
    assert lab.attention_groups(model(STA), images(4), labelling="experts", progress=False).plot().image()


def test_entropy_over_images_is_that_of_a_literal_loop() -> None:
    network, pictures = model(STA), images(5)
    groups = lab.attention_groups(network, pictures, batch_size=2, by_image=True, progress=False)
    with lab.probe(network, dtype=torch.float64) as maps:
        network(pictures)
    found = groups.by_image().set_index(["kind", "layer", "expert", "image"])
    checked = 0
    for part in maps.select(kind="joint"):
        frame = part.frame()
        for image, mine in frame[frame["query_patch"] >= 0].groupby("image"):  # rows of class tokens do not count
            rows = [row.tolist() for _, row in mine.groupby(["query_head", "query_patch"])["attention"]]
            entropies = [-sum(a * math.log(a) for a in row if a > 0) for row in rows]
            said = found.loc[("joint", part.layer, part.expert, image)]
            assert said["entropy"] == pytest.approx(sum(entropies) / len(rows), rel=1e-6)
            assert said["effective keys"] == pytest.approx(sum(map(math.exp, entropies)) / len(rows), rel=1e-6)
            assert said["keys"] == len(rows[0]) and said["uniform entropy"] == pytest.approx(math.log(len(rows[0])))
            checked += 1
    assert checked == len(found.loc[["joint"]]) >= 5
    figure = groups.plot("images")
    mean = found.loc[["joint"]].reset_index().groupby(["expert", "image"])["entropy"].mean()
    later = figure.table[figure.table["expert"] > 1]  # expert 1 reads itself alone: its attention is "spatial"
    assert later["entropy"].tolist() == pytest.approx(mean.tolist()) and figure.image()
    ia = lab.attention_groups(model(IA), pictures, by_image=True, progress=False)
    both = entropy_over_images({"ia": ia, "sta": groups})
    assert set(both.table["series"]) == {"ia", "sta"} and len(both.table) == 2 * len(figure.table)
    assert both.table[both.table["series"] == "sta"]["entropy"].tolist() == figure.table["entropy"].tolist()
    with pytest.raises(LabError, match="by_image=True"):
        lab.attention_groups(model(IA), pictures, progress=False).plot("images")
    with pytest.raises(LabError, match="groups, images"):
        groups.plot("boxes")


def test_which_heads_an_expert_reads() -> None:
    network = model(DNE)
    with lab.probe(network, kind=("task1", "task2"), expert=2) as maps:
        network(images(3))
    figure = heads_read(maps)
    row = figure.table.iloc[-1]
    part = maps.get("task2", layer=int(row["layer"])).values
    names = list(figure.table.columns[2:])
    for place, name in enumerate(names):
        weights = [float(weight) for weight in part[..., place].flatten()]
        assert row[name] == pytest.approx(100 * sum(weights) / len(weights), rel=1e-5)
    assert figure.table[names].sum(axis=1).to_numpy() == pytest.approx(100) and figure.image()
    with lab.probe(network, kind="task1") as maps:
        network(images(1))
    with pytest.raises(LabError, match="experts"):
        heads_read(maps)


def test_a_sweep_is_drawn() -> None:
    batch = Batch(images(4), torch.arange(4), torch.arange(4))
    sweep = lab.ablation_sweep(model(STA), batch, progress=False)
    assert sweep.plot().table.equals(sweep.table()) and sweep.plot().image()


def test_a_run_is_drawn_as_far_as_it_is() -> None:
    run = lab.open(ROOT / "figures" / "checkpoints" / "dne-digits-s0.safetensors")
    assert len(run.plot().table) == 1 + 2 + 3 + 4 and run.plot().image()
    small = {"network__depth": 2, "network__head_width": 4, "network__patch": 4, "learn__epochs": 1, "tune__epochs": 0}
    fresh = lab.start("dne", progress=False, device="cpu", k=2, **small)
    assert fresh.config.network.heads == (3, 2)
    with pytest.raises(LabError, match=r"no task is finished yet"):
        fresh.plot()
    fresh.next_task()
    assert len(fresh.plot().table) == 1


@pytest.mark.parametrize("name", ["4 right", "4right", "4(right)", "figure 4 right", "Figure_4_right", "fig. 4 right"])
def test_a_figure_by_its_name_in_the_paper(name: str) -> None:
    assert lab.figure(name, RECORDS / "digits100").name == "figure_4_right"


def test_figures_by_other_names(tmp_path: Path) -> None:
    assert lab.figure("4 left", [RECORDS / "attention", RECORDS / "digits100"]).name == "attention_groups"
    assert lab.figure("6 e", RECORDS / "cost").name == "figure_6e"
    record().write(tmp_path / "a" / "record.json")
    assert lab.figure("accuracy_by_task", tmp_path).name == lab.figure("digits_accuracy_by_task", tmp_path).name
    record(dataset="digits100").write(tmp_path / "b" / "record.json")
    with pytest.raises(LabError, match=r"there are 2 of them here. Name one: digits_acc.*, digits100_acc"):
        lab.figure("accuracy_by_task", tmp_path)
    with pytest.raises(
        LabError, match=r"nothing in .* to draw it from. It needs what is measured: dne-lab report .* --a"
    ):
        lab.figure("4 left", tmp_path)
    with pytest.raises(LabError, match=r"unknown figure '7 left'.* 1 right, 2, 3, 4 left"):
        lab.figure("7 left", tmp_path)


def test_several_maps_say_how_to_choose_one() -> None:
    net = model(IA)
    with lab.probe(net, kind="spatial") as maps:
        net(images(1))
    with pytest.raises(LabError, match=r"Choose one, for instance maps\.get\(layer=1, expert=3\)"):
        maps.get()
    with pytest.raises(LabError, match=r"maps\.get\(layer=1\)"):
        maps.get(expert=2)
    with pytest.raises(LabError, match=r"0 maps for expert=9. Choose one"):
        maps.get(expert=9)
