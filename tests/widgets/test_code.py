"""The code of a view opens an explorer at the same view, in every tab; what is not there is said."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import IPython
import pandas as pd
import pytest
import tiny
import torch
from invented import record

import dne_lab as lab
from dne_lab.core.errors import LabError
from dne_lab.data.stream import Batch
from dne_lab.models.variants import DNE, IA, STA
from dne_lab.widgets.explorer import TABS, Explorer
from dne_lab.widgets.runs import RunsExplorer

MODELS = {variant.name: tiny.model(variant, (3, 1, 2), depth=3) for variant in (IA, STA, DNE)}
BATCH = Batch(tiny.images(5), torch.tensor([0, 1, 0, 1, 1]), torch.arange(5))
CHANGES = {
    "task": {"task attention": "second of the two", "task (expert)": 3, "layer": 1, "query head": 1, "patch": 4},
    "looking": {"model": STA.name, "beside it": "nothing", "task (expert)": 3, "layer": 1, "patch": 5},
    "what_if": {"switch off": "all other experts", "as read by": "expert 3", "weights": "zero: the rest is kept",
                "only groups": ["DPDH: different patch, different head"]},
    "overview": {"sort": "lowest entropy", "only layer": "layer 1", "colours": "absolute", "patch": 3},
    "gallery": {"sort": "largest attention", "only class": "dog", "task (expert)": 3, "patch": 2},
}  # fmt: skip


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The variables of a notebook."""
    variables: dict[str, Any] = {"lab": lab, "networks": MODELS, "batch": BATCH}
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(user_ns=variables))
    return variables


def opened(tab: str, view: dict[str, Any]) -> Explorer:
    made = lab.explore(MODELS, BATCH, ["cat", "dog"], tab=tab, view=view)
    assert isinstance(made, Explorer) and made.part.message.value == "", made.part.message.value
    return made


@pytest.mark.parametrize("tab", TABS)
def test_the_code_of_a_tab_makes_its_view_again(tab: str, notebook: dict[str, Any]) -> None:
    made = opened(tab, {"image": 3} | CHANGES[tab])
    state = made.part.state()
    assert made.image.value == 3 and {name: state[name] for name in CHANGES[tab]} == CHANGES[tab]
    text = made.code()
    assert text.startswith("explorer = lab.explore(\n    networks, batch, names=['cat', 'dog'], tab=")
    assert max(map(len, text.splitlines())) <= 106  # what a cell shows
    exec(text, notebook)
    again = notebook["explorer"]
    assert again.part.state() == state and again.code() == text
    pd.testing.assert_frame_equal(again.part.numbers(), made.part.numbers())


def test_without_a_variable_there_is_a_word_for_it() -> None:
    text = opened("task", {}).code()
    assert "{'ia': model, 'sta': model, 'dne': model}, images, names=['cat', 'dog'], tab='task'," in text


@pytest.mark.parametrize(
    ("view", "said"),
    [
        ({"colour": "absolute"}, "unknown control in view 'colour'. Did you mean colours"),
        ({"colours": "red"}, "unknown value of 'colours' in view 'red'"),
        ({"layer": 7}, r"view\['layer'\] = 7: must be a whole number from 0 to 2"),
        ({"layer": "1"}, r"view\['layer'\] = '1': must be a whole number"),
        ({"image": -1}, r"view\['image'\] = -1: must be a whole number from 0 to 4"),
        ({"patch": 6}, r"view\['patch'\] = 6: must be a whole number from 0 to 5"),
    ],
)
def test_what_is_not_there_is_said(view: dict[str, Any], said: str) -> None:
    with pytest.raises(LabError, match=said):
        lab.explore(MODELS, BATCH, tab="task", view=view)


def test_the_code_of_the_runs_explorer(tmp_path: Path, notebook: dict[str, Any]) -> None:
    for method, seed in (("dne", 0), ("dne", 1), ("ia", 0), ("sta", 0)):
        record(method=method, seed=seed).write(tmp_path / f"{method}-s{seed}" / "record.json")
    view = {
        "filter": "-sta", "group by configuration (mean over seeds)": True, "beside it": "cost and attention",
        "groups": ["DNE (k = 1): 2 seeds"], "difference of": "IA (k = 1): one seed, no interval",
        "minus": "DNE (k = 1): 2 seeds", "details of": "DNE (k = 1), seed 1", "after task": 2,
    }  # fmt: skip
    made = lab.explore_runs(tmp_path, view=view)
    exec(made.code(), notebook)
    again = notebook["explorer"]
    assert isinstance(again, RunsExplorer) and again.code() == made.code()
    assert [run.name for run in again.shown()] == ["dne-s0", "dne-s1"] and again.details.after.value == 2
    assert again.pair.said.value == made.pair.said.value and "IA (k = 1) minus DNE" in again.pair.said.value
    with pytest.raises(LabError, match="unknown value of 'runs' in view 'x'"):
        lab.explore_runs(tmp_path, view={"runs": ["x"]})


def test_a_committed_notebook_keeps_a_picture_of_what_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record(method="dne").write(tmp_path / "dne" / "record.json")
    for made in (opened("task", {}), lab.explore_runs(tmp_path)):
        monkeypatch.setenv("DNE_LAB_FIGURES", "static")
        data, _ = made._repr_mimebundle_()
        assert {"image/png", "text/plain", "application/vnd.jupyter.widget-view+json"} <= data.keys()
        monkeypatch.delenv("DNE_LAB_FIGURES")
        assert "image/png" not in made._repr_mimebundle_()
