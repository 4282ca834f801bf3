"""The overview: every control, what a click does, and that many heads are not all drawn."""

from typing import Any

import numpy as np
import pytest
import tiny

import dne_lab as lab
from dne_lab.analysis.head_table import heads_of_image
from dne_lab.models.variants import DNE, IA, PROGRESSIVE, STA
from dne_lab.plots.style import KIND_WORDS
from dne_lab.widgets import overview
from dne_lab.widgets.explorer import Explorer

PATCHES, _ = overview.SORTS["patches"]


def explorer(variants: Any = (DNE, STA, IA), heads: tuple[int, ...] = (3, 1, 2)) -> Explorer:
    made = lab.explore({v.name: tiny.model(v, heads) for v in variants}, tiny.images(3), tab="overview")
    assert isinstance(made, Explorer)
    return made


def test_every_control_changes_what_is_seen() -> None:
    made = explorer()
    part: Any = made.part
    assert part.message.value == "" and len(part.found) == len([h for h in part._all() if h.kind == "spatial"])

    def seen() -> tuple[Any, ...]:
        return [p["title"] for p in part.maps.scene["panels"]], bytes(part.maps.scene["pixels"])

    for control in (part.order, part.of_layer, part.of_expert, part.colours, part.kind, part.model):
        first, shown = control.value, {repr(seen())}
        for option in control.options:
            control.value = option[1] if isinstance(option, tuple) else option
            assert part.message.value == ""
            shown.add(repr(seen()))
        assert len(shown) > 1, control.description
        control.value = first
    part.patches.patch = 3
    part.order.value = "lowest entropy"
    numbers = np.frombuffer(part.maps.scene["numbers"], dtype="<f4").reshape(len(part.found), -1)
    assert np.allclose(numbers, [one.maps[3] for one in part.found])
    assert part._png()[2].startswith(b"\x89PNG") and part._csv()[2].startswith(b"kind,layer,expert,head")


@pytest.mark.parametrize(("kind", "tab"), [(PATCHES, "looking"), (KIND_WORDS["task2"], "task")])
def test_a_click_enters_the_head(kind: str, tab: str) -> None:
    made = explorer()
    part: Any = made.part
    part.kind.value, part.patches.patch = kind, 4
    place = len(part.found) - 1
    wanted = part.found[place]
    part.maps._handle_custom_msg({"enter": place}, [])
    assert made.part is made.parts[tab]
    there: Any = made.part
    current = there.current()
    view = current["dne"] if tab == "looking" else current
    assert (view.kind, view.layer, view.expert, view.head) == (wanted.kind, wanted.layer, wanted.expert, wanted.head)
    assert there.patches.patch == 4 and there.message.value == ""


def test_many_heads_are_sorted_before_some_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "MOST", 4)
    part: Any = explorer((STA,)).part
    part.order.value = "lowest entropy"
    everything = heads_of_image(part.subject.models["sta"], part.subject.images[0])
    spread = sorted(np.log(h.effective) / np.log(h.keys) for h in everything)
    assert len(part.found) == 4 and f"4 of {len(everything)} heads" in part.count.value
    assert [np.log(h.effective) / np.log(h.keys) for h in part.found] == pytest.approx(spread[:4], abs=1e-5)
    assert len(part.numbers()) == len(everything)  # the table has all


def test_networks_that_mix_linearly_have_an_overview_too() -> None:
    part: Any = explorer((PROGRESSIVE,)).part
    assert part.message.value == "" and part.kind.options == ((PATCHES, PATCHES),)
