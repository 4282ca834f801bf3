"""A run's networks along its stream, and what one image gives at each moment."""

from typing import Any

import numpy as np
import pytest
import tiny
import torch

import dne_lab as lab
from dne_lab.analysis import views
from dne_lab.analysis.attention_groups import attention_groups
from dne_lab.analysis.moments import NEWEST, Glance, Moments, along, glances
from dne_lab.core.errors import LabError
from dne_lab.models.variants import DNE, IA, STA
from dne_lab.training.run import Run

SMALL: dict[str, Any] = {
    "learn__epochs": 1, "tune__epochs": 1, "learn__batch": 16, "network__depth": 3, "network__head_width": 4,
    "network__heads": "2,1", "network__patch": 4, "memory__budget": 20, "progress": False, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def run() -> Run:
    return lab.train("dne", lab.stream("digits", tasks=(4, 3, 3)), **SMALL)


def test_moments_are_those_of_the_run(run: Run) -> None:
    moments = Moments(run)
    assert moments.places == [0, 1, 2, 3] and moments.learning is None
    assert [moments.name(place) for place in (0, 1, 3)] == ["untrained", "after task 1", "after task 3"]
    assert [len(moments.network(place).experts) for place in moments.places] == [3, 1, 2, 3]
    last, final = moments.network(3).state_dict(), run.model.state_dict()
    assert all(torch.equal(last[name], final[name]) for name in final)
    assert moments.network(2) is moments.network(2)  # remembered


def test_a_task_that_is_being_learned_is_a_moment_of_its_own() -> None:
    run = lab.start("dne", lab.stream("digits", tasks=(4, 3, 3)), **SMALL)
    moments = Moments(run)
    assert moments.places == [0] and moments.learning is None
    seen: list[tuple[list[int], str, bool]] = []
    run.viewers.append(
        lambda r: seen.append(
            (moments.places, moments.name(moments.places[-1]), moments.network(moments.places[-1]) is r.model)
        )
    )
    run.next_task()
    run.next_task()
    assert seen[0] == ([0, 1], "now, in task 1", True)
    assert ([0, 1, 2], "now, in task 2", True) in seen
    assert moments.places == [0, 1, 2] and moments.name(2) == "after task 2"


def test_a_method_without_experts_is_refused() -> None:
    with pytest.raises(LabError, match="has no experts"):
        Moments(lab.start("icarl", lab.stream("digits"), progress=False, device="cpu"))


@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
@pytest.mark.parametrize("variant", [IA, STA, DNE], ids=tiny.names)
def test_glances_are_what_the_instruments_over_data_sets_say(variant: Any, style: dict[str, Any]) -> None:
    model, images = tiny.model(variant, (3, 1, 2), **style), tiny.images(3)
    found = glances(model, images)
    with torch.no_grad():
        assert np.allclose([glance.logits for glance in found], model(images).logits.numpy(), atol=1e-5)
    for number, glance in enumerate(found):
        for (kind, layer, expert), shares in glance.groups.items():
            one = attention_groups(model, images[number][None], kind=kind, layer=layer, expert=expert)
            table = one.table().set_index("group")
            for group, (share, uniform) in zip(("SPSH", "SPDH", "DPSH", "DPDH"), shares, strict=True):
                there = table.loc[group] if group in table.index else {"share %": 0.0, "uniform %": 0.0}
                assert share == pytest.approx(there["share %"], abs=1e-3)
                assert uniform == pytest.approx(there["uniform %"], abs=1e-3)
            assert shares.sum(0) == pytest.approx([100, 100], abs=1e-4)
        for (kind, layer, expert), shares in glance.reads.items():
            assert shares.sum(0) == pytest.approx([100, 100], abs=1e-4) and len(shares) == expert
            if kind in views.TASKWISE:
                maps = views.read(model, images[number], kind, layer, expert)
                own = [views.task_view(maps, head).by_expert.mean(0) for head in range(model.heads[expert - 1])]
                assert shares[:, 0] == pytest.approx(100 * np.mean(own, axis=0), abs=1e-3)
    assert bool(found[0].reads) == (variant is not IA)


def test_the_table_along_the_stream(run: Run) -> None:
    moments = Moments(run)
    image = run.stream.test_images(1).images
    found = [glances(moments.network(place), image)[0] for place in moments.places]
    names = [moments.name(place) for place in moments.places]
    table = along(found, names)
    assert table["expert"].tolist() == [3, 1, 2, 3] and table["keys"].notna().all()
    second = along(found, names, expert=2)
    assert np.isnan(second["SPSH %"][1]) and second["SPSH %"][2] == pytest.approx(second["SPSH %"][3])  # frozen
    layer = along(found, names, NEWEST, layer=0)
    assert layer["SPSH %"].tolist() != table["SPSH %"].tolist()
    flow = found[-1].flow()
    assert set(flow["expert"]) == {2, 3} and flow.groupby(["kind", "expert"])["share %"].sum().round(3).eq(100).all()
    assert found[1].flow().empty and isinstance(found[0], Glance)
