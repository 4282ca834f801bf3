"""The explorers without a browser: every control to its ends, odd models and images, and what is told instead of a
traceback."""

import copy
import datetime
import gc
import io
import weakref
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from ipywidgets.widgets.widget import _instances
from PIL import Image
from tiny import AUTHORS, PAPER

import dne_lab as lab
from dne_lab.analysis.ablation import Selection
from dne_lab.analysis.sweep import image_sweep
from dne_lab.analysis.views import PATCHWISE, TASKWISE, look_view
from dne_lab.core.errors import LabError
from dne_lab.data.stream import Batch
from dne_lab.models.variants import DNE, IA, PROGRESSIVE, STA
from dne_lab.plots.attention_colours import RELATIVE, SCALES, STRETCHED, heat, task_scale
from dne_lab.widgets.explorer import Explorer
from dne_lab.widgets.subject import Subject, fit

HEADS = (3, 1, 2)


def explorer(
    variants: Any = (DNE, STA, IA), heads: Any = HEADS, tab: str = "task", labels: bool = True, **style: Any
) -> Explorer:
    models = {variant.name: tiny.model(variant, heads, **{**AUTHORS, **style}) for variant in variants}
    pixels = tiny.images(6)
    images = Batch(pixels, torch.arange(6) % 4, torch.arange(6)) if labels else pixels
    made = lab.explore(models, images, names=["cat", "dog"], tab=tab)
    assert isinstance(made, Explorer)
    return made


def sliders(part: Any) -> list[Any]:
    return [control for control in vars(part).values() if hasattr(control, "min") and hasattr(control, "max")]


def dropdowns(part: Any) -> list[Any]:
    return [
        c
        for c in vars(part).values()
        if hasattr(c, "options") and hasattr(c, "index") and not isinstance(c.index, tuple)
    ]


def seen(part: Any) -> tuple[Any, ...]:
    """Everything on the screen of a part."""
    shown = [control.value for control in vars(part).values() if type(control).__name__ == "HTML"]
    shown += [html.value for name in ("tables",) for html in getattr(part, name, [])]
    maps = (
        [part.patches, *([part.maps] if hasattr(part.maps, "scene") else part.maps)]
        if hasattr(part, "maps")
        else [part.patches]
    )
    return (*shown, *(bytes(m.scene["pixels"]) for m in maps), *(bytes(m.scene["numbers"]) for m in maps))


@pytest.mark.parametrize("style", [PAPER, AUTHORS], ids=tiny.names)
@pytest.mark.parametrize("tab", ["task", "looking", "what_if"])
def test_every_control_works_to_its_ends_and_the_view_follows(tab: str, style: dict[str, Any]) -> None:
    made = explorer(tab=tab, **style)
    part = made.part
    for control in [made.image, *sliders(part)]:
        for value in (control.max, control.min, control.max):
            control.value = value
            assert part.message.value == ""
    for control in dropdowns(part):
        first = control.value
        for _, value in (
            list(control.options) if isinstance(control.options[0], tuple) else [(v, v) for v in control.options]
        ):
            before = seen(part)
            changed = control.value != value
            control.value = value
            assert not changed or part.message.value or seen(part) != before or tab == "what_if"
        control.value = first
    for patch in range(6):
        part.patches.patch = patch
        assert (part.message.value == "" and f"patch {patch} " in "".join(map(str, seen(part)))) or tab == "what_if"


def test_task_attention_shows_the_numbers_of_the_view() -> None:
    made = explorer()
    part: Any = made.part
    assert part.model.options == ("dne",) and (part.expert.min, part.expert.max) == (2, 3)
    part.expert.value = 3
    part.head.value, part.patches.patch = 1, 5
    view = part.current()
    numbers = np.frombuffer(part.maps.scene["numbers"], dtype="<f4").reshape(6, 6)
    assert np.allclose(numbers, view.weights.T)
    assert [panel["title"] for panel in part.maps.scene["panels"]] == view.names
    read = np.frombuffer(part.patches.scene["numbers"], dtype="<f4")
    assert read.tolist() == view.most_read.tolist() and part.patches.scene["panels"][1]["texts"] == [
        str(n) for n in view.most_read
    ]
    for name, value in zip(view.names, view.weights[5], strict=True):
        assert f"{name}, attention: {value:.4g}, uniform 0.1667" in part.bars.value
    pixels = np.frombuffer(part.maps.scene["pixels"], dtype=np.uint8).reshape(6, 6, 3)
    scale = task_scale(view)
    assert (pixels == heat(view.weights.T, scale.high)).all() and f">{scale.high:.2g}</text></svg>" in part.scale.value
    words = part.patches.scene["panels"][1]["words"]
    assert words[5] == f"expert {view.most_read[5]}, {100 * view.margin[5]:.3g}% above the next"
    part.expert.value = 2
    assert part.head.value == 0 and part.head.disabled and len(part.current().names) == 4


def test_the_image_changes_what_is_seen_and_hidden_tabs_wait() -> None:
    made = explorer()
    task, looking = made.parts["task"], made.parts["looking"]
    assert not task.stale and looking.stale
    before = seen(task)
    made.image.value = 3
    assert seen(task) != before and looking.stale and task.image == looking.image == 3
    made.tabs.selected_index = 1
    assert not looking.stale and looking.message.value == ""
    truth = "truth class 3" in looking.said.value
    assert truth and ("right" in looking.said.value or "wrong" in looking.said.value)


def test_the_explorer_opens_where_attention_is_furthest_from_uniform() -> None:
    made = explorer()
    part: Any = made.part
    model, image = made.subject.models["dne"], made.subject.images[0]
    shown = part.block.value, part.layer.value, part.expert.value, part.head.value
    far = {}
    with torch.no_grad(), lab.probe(model, kind=TASKWISE) as maps:
        model(image[None])
    for found in maps:
        skip = found.axes.classes
        for head in range(len(found.axes.query_head)):
            rows = found.values[0, skip:, head].double()  # (n, kh)
            entropy = -(rows * rows.log()).sum(-1) / np.log(rows.shape[-1])
            far[found.kind, found.layer, found.expert, head] = 1 - entropy
    assert shown == max(far, key=lambda place: far[place].mean())
    assert part.patches.patch == int(far[shown].argmax())
    assert made.subject.structure("ia", 0, TASKWISE) == {}
    assert len(made.subject.structure("sta", 0, PATCHWISE)) == sum(HEADS)


def test_tabs_share_what_was_chosen_in_one() -> None:
    made = explorer(variants=(DNE, STA), **PAPER)
    task, looking, what = (made.parts[name] for name in ("task", "looking", "what_if"))
    task.expert.value, task.layer.value, task.head.value, task.patches.patch = 3, 1, 1, 4
    made.tabs.selected_index = 1
    assert (looking.expert.value, looking.layer.value, looking.head.value, looking.patches.patch) == (3, 1, 1, 4)
    assert looking.shown() == ["dne", "sta"]
    looking.expert.value, looking.patches.patch = 1, 2
    made.tabs.selected_index = 0
    assert (task.expert.value, task.patches.patch) == (2, 2)  # nobody reads others before expert 2
    made.tabs.selected_index = 1
    assert looking.expert.value == 1
    looking.right.value, looking.left.value = "", "sta"
    made.tabs.selected_index = 2
    assert what.model.value == "sta"
    made.tabs.selected_index = 0
    assert task.model.value == "dne" and task.message.value == ""


@pytest.mark.parametrize("tab", ["task", "looking"])
def test_the_colours_say_which_scale_they_are(tab: str) -> None:
    part: Any = explorer(tab=tab, heads=(1, 1, 1)).part
    pixels = set()
    for kind in SCALES:
        part.colours.value = kind
        maps = [part.maps] if tab == "task" else part.maps
        pixels.add(b"".join(bytes(each.scene["pixels"]) for each in maps))
        assert kind in part.scale.value and part.message.value == "" and part.figure().image()
    assert len(pixels) == 3
    part.colours.value = STRETCHED
    if tab == "task":
        view = part.current()
        scale = task_scale(view, STRETCHED)
        assert scale.place(view.weights).min() == 0 and scale.place(view.weights).max() == 1
        even = task_scale(view, RELATIVE)
        assert even.place(np.array(view.uniform)) == 0.5


def test_ia_and_sta_look_side_by_side() -> None:
    made = explorer(tab="looking")
    part: Any = made.part
    assert part.shown() == ["ia", "sta"]
    ia, sta = part.current().values()
    assert (ia.kind, sta.kind) == ("spatial", "joint") and len(ia.names) == 1 and len(sta.names) == 6
    assert (
        f"{ia.frame()['share %'][0]:.2f}" in part.tables[0].value
        and f"{sta.frame()['share %'][1]:.2f}" in part.tables[1].value
    )
    maps = made.subject.map("sta", 0, "joint", sta.layer, sta.expert)  # type: ignore[attr-defined]
    every = [100 * look_view(maps, patch, sta.head).shares[3] for patch in range(6)]
    assert f"{np.mean(every):.1f} ({min(every):.1f} to {max(every):.1f})" in part.tables[1].value
    part.expert.value = 1
    assert [view.kind for view in part.current().values()] == ["spatial", "spatial"]
    part.right.value = ""
    assert part.shown() == ["ia"] and part.columns[1].layout.display == "none"
    part.left.value = "dne"
    assert list(part.current()) == ["dne"] and part.message.value == ""


def test_what_if_changes_logits_and_keeps_old_outputs() -> None:
    made = explorer(tab="what_if", variants=(IA, STA, DNE))
    part: Any = made.part
    assert part.model.value == "sta" and "matters most" in part.answer.value  # a question is asked already
    part.reads.value, part.expert.value = "", ""
    assert "nothing is off" in part.said.value and part.result.moved == [0.0, 0.0, 0.0]
    part.model.value = "dne"
    part.reads.value = 1
    assert part.result.moved[0] == 0.0 and part.result.moved[2] > 0 and "keys of expert 1" in part.said.value
    assert 'expert 1</td><td style="padding-left: 10px">bit for bit the same' in part.moved.value
    part.expert.value = 3
    assert part.result.moved[:2] == [0.0, 0.0] and part.result.moved[2] > 0
    assert "accuracy on the labelled images" in part.accuracy.value and ">all<" in part.accuracy.value
    part.kind.value, part.how.value, part.layer.value = "task2", "zero", 0
    assert part.selection() == Selection(1, 3, "task2", 0, (), "zero")
    part.expert.value = 1
    assert "task2" in part.message.value and part.view.layout.display == "none"
    part.expert.value = ""
    assert part.message.value == "" and part.view.layout.display == ""
    part.reads.value, part.group.value = "", ("SPSH", "SPDH")
    assert "SPSH + SPDH" in part.said.value and len(part.numbers()) == 6
    part.model.value = "ia"
    assert part.group.value == () and part.reads.value == "" and "nothing is off" in part.said.value
    assert [name for _, name in part.group.options] == ["SPSH", "DPSH"]


@pytest.mark.parametrize("tab", ["task", "looking", "what_if"])
def test_each_view_saves_png_and_csv(tab: str) -> None:
    part = explorer(tab=tab).part
    name, kind, picture = part._png()
    assert name.endswith(".png") and kind == "image/png" and Image.open(io.BytesIO(picture)).width > 500
    name, kind, text = part._csv()
    table = pd.read_csv(io.BytesIO(text))
    assert name.endswith(".csv") and kind == "text/csv" and len(table) > 3
    sent: list[Any] = []
    button = part.saving.children[1]
    button.send = lambda content, buffers: sent.append((content["name"], buffers[0]))
    button._asked(button, "save", [])
    assert sent == [(name, text)]


def test_a_model_without_task_attention_gets_a_sentence() -> None:
    made = explorer(variants=(IA,))
    assert "ia (ia) has no task attention: its experts mix features by mlp" in made.part.message.value
    assert made.part.view.layout.display == "none"
    made.tabs.selected_index = 1
    assert made.part.message.value == ""


def test_one_expert_alone() -> None:
    made = explorer(variants=(DNE, STA), heads=(3,))
    assert "has one expert so far. Task attention begins with the second" in made.part.message.value
    for tab in (1, 2):
        made.tabs.selected_index = tab
        assert made.part.message.value == ""
    assert made.parts["looking"].expert.max == 1


def test_a_run_without_sta_and_a_variant_with_linear_connections() -> None:
    made = explorer(variants=(PROGRESSIVE, DNE), tab="looking")
    assert made.part.message.value == "" and made.part.shown() == ["progressive", "dne"]
    made.tabs.selected_index = 0
    assert made.part.model.options == ("dne",) and made.part.message.value == ""


def test_26_experts() -> None:
    made = explorer(variants=(DNE, STA), heads=(3, *[1] * 25), labels=False)
    part: Any = made.part
    part.expert.value = 26
    assert part.expert.max == 26 and len(part.maps.scene["panels"]) == 28
    for tab in (1, 2):
        made.tabs.selected_index = tab
        assert made.part.message.value == ""
    what: Any = made.part
    what.reads.value = 25
    assert what.result.moved[:25] == [0.0] * 25 and what.result.moved[25] > 0
    assert "these images have no labels" in what.accuracy.value


def test_a_compiled_model_gets_a_sentence() -> None:
    whole = torch.compile(tiny.model(DNE, (1, 1)))
    told = lab.explore(whole, tiny.images(1))
    assert not isinstance(told, Explorer) and "is compiled" in told.value and "model._orig_mod" in told.value
    inside = copy.deepcopy(tiny.model(DNE, (1, 1)))
    inside.compile()
    assert "copy.deepcopy(model)" in lab.explore(inside, tiny.images(1)).value


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (torch.zeros(2, 3, 9, 12, dtype=torch.uint8), "takes uint8 images of shape (B, 3, 8, 12)"),
        (torch.zeros(2, 3, 8, 12), "given: float32"),
        (torch.zeros(0, 3, 8, 12, dtype=torch.uint8), "there is no image to look at"),
        ("cat.png", "there is no image to look at"),
        (Batch(tiny.images(2), torch.arange(3), torch.arange(3)), "2 images and 3 labels"),
        (Batch(tiny.images(2), torch.tensor(1), torch.arange(2)), "2 images and labels = 1"),
        (Batch(tiny.images(2), torch.tensor([0, -1]), torch.arange(2)), "a label of -1: must be a whole number"),
        (Batch(tiny.images(2), torch.tensor([0.5, 1]), torch.arange(2)), "a label of 0.5: must be a whole number"),
        (Batch(tiny.images(2), torch.zeros(2, 1).long(), torch.arange(2)), "a label of [0]: must be a whole number"),
    ],
)
def test_images_that_do_not_fit_get_a_sentence(images: Any, told: str) -> None:
    assert told in lab.explore(tiny.model(), images).value


def test_names_that_are_none_are_names_left_out() -> None:
    models = {"dne": tiny.model(DNE, HEADS, **AUTHORS)}
    images = Batch(tiny.images(6), torch.arange(6) % 4, torch.arange(6))
    without, none = lab.explore(models, images), lab.explore(models, images, names=None)
    assert isinstance(without, Explorer) and isinstance(none, Explorer)
    assert none.caption.value == without.caption.value != ""
    assert lab.explore(models, images, names=["cat", "dog"]).caption.value != none.caption.value


@pytest.mark.parametrize("names", [5, "cat", {0: "cat"}, {"cat"}], ids=str)
def test_names_without_an_order_get_a_sentence(names: Any) -> None:
    assert "give a list of words" in lab.explore(tiny.model(), tiny.images(), names=names).value


def test_labels_and_names_of_other_kinds_are_taken() -> None:
    pixels, model = tiny.images(2), tiny.model()
    for labels in ([1, 0], np.array([1, 0]), torch.tensor([1, 0])):
        made = lab.explore(model, Batch(pixels, labels, torch.arange(2)), names=np.array(["cat", "dog"]))
        assert isinstance(made, Explorer) and made.caption.value == "truth: dog"
        assert "names=names" in made.code()
    without = lab.explore(model, Batch(pixels, None, None))  # type: ignore[arg-type]
    assert isinstance(without, Explorer) and without.caption.value == ""


def test_names_of_models_are_words_that_differ() -> None:
    one, images = tiny.model(), tiny.images()
    numbered = lab.explore({1: one, 2: one}, images)  # type: ignore[dict-item]
    assert isinstance(numbered, Explorer) and list(numbered.subject.models) == ["1", "2"]
    for given in ({"": one, "two": one}, {1: one, "1": one}):
        assert "need names that differ" in lab.explore(given, images).value


def test_other_things_that_cannot_be_explored() -> None:
    with pytest.raises(LabError, match=r"view = 5: give values by the labels of the controls"):
        lab.explore(tiny.model(), tiny.images(), view=5)  # type: ignore[arg-type]
    assert "there is no model to look at" in lab.explore({}, tiny.images()).value
    assert "no expert yet" in lab.explore(tiny.model(heads=()), tiny.images()).value
    sizes = {"one": tiny.model(shape=(3, 8, 8)), "other": tiny.model()}
    assert "different sizes" in lab.explore(sizes, tiny.images()).value
    with pytest.raises(LabError, match=r"tab = 'maps': must be one of task, looking, what_if"):
        lab.explore(tiny.model(), tiny.images(), tab="maps")


def test_models_with_other_patches_are_not_put_side_by_side() -> None:
    models = {"ia": tiny.model(IA), "sta": tiny.model(STA, patch=2)}
    made: Any = lab.explore(models, tiny.images(), tab="looking")
    assert made.part.shown() == ["ia"]
    made.part.patches.patch = 5
    made.part.right.value = "sta"
    assert "cut images into different patches" in made.part.message.value
    made.part.left.value = "sta"
    assert made.part.message.value == "" and made.part.current()["sta"].grid == (4, 6)


def png(width: int, height: int, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode).save(
        file, "PNG"
    )
    return file.getvalue()


def uploaded(name: str, content: bytes) -> dict[str, Any]:
    """As the browser hands it over."""
    told = {"name": name, "type": "", "size": len(content), "last_modified": datetime.datetime.now(tz=datetime.UTC)}
    return told | {"content": memoryview(content)}


def test_a_file_of_ones_own_is_fitted_and_seen() -> None:
    made = explorer()
    made.upload.value = (uploaded("cat.png", png(50, 40)),)
    assert (
        made.image.value == made.image.max == 6
        and "cat.png: fitted from 50 x 40 to 12 x 8 pixels" in made.caption.value
    )
    assert "predicts" in made.part.said.value and "truth" not in made.part.said.value
    made.image.value = 0
    assert made.caption.value == "truth: cat"
    made.upload.value = (uploaded("cat.txt", b"cat"),)
    assert "cat.txt: this file cannot be decoded" in made.refused.value
    assert made.caption.value == "truth: cat" and made.image.value == 0  # it is still the image that is seen
    made.upload.value = (uploaded("<i>dog.png", png(12, 8)),)
    assert made.caption.value == "&lt;i&gt;dog.png: as it is" and made.image.value == 7 and made.refused.value == ""
    taken = [(file["name"], len(file["content"])) for file in made.upload.value]
    assert taken == [("cat.png", 0), ("<i>dog.png", 0)]  # counted by the button, not kept


def test_fitting_takes_the_middle_and_knows_grey() -> None:
    image, told = fit(png(30, 8), (3, 8, 12))
    assert image.shape == (3, 8, 12) and image.dtype == torch.uint8 and "fitted from 30 x 8" in told
    grey, _ = fit(png(12, 8, "L"), (1, 8, 12))
    assert grey.shape == (1, 8, 12)
    assert fit(png(12, 8, "RGBA"), (3, 8, 12))[0].shape == (3, 8, 12)


def test_memory_is_bounded() -> None:
    subject = Subject({"dne": tiny.model(DNE, HEADS)}, tiny.images(30))
    for image in range(30):
        subject.map("dne", image, "task1", 0, 2)
    assert len(subject._maps) == 16


def test_closing_frees_the_widgets_and_the_model() -> None:
    before = set(_instances)
    models = {variant.name: tiny.model(variant, HEADS, **AUTHORS) for variant in (DNE, STA)}
    alive = [weakref.ref(model) for model in models.values()]
    view = lab.explore(models, tiny.images(6))
    assert isinstance(view, Explorer)
    for place in range(3):
        view.tabs.selected_index = place
    view.image.value = 2
    del models
    gc.collect()
    assert all(one() is not None for one in alive)  # the explorer has them
    view.close()
    gc.collect()
    assert not any(one() is not None for one in alive)
    view.close()  # once more does no harm
    left = {type(_instances[name]).__name__ for name in set(_instances) - before}
    assert left <= {"Layout"}  # ipywidgets itself makes one for a box that is then given another


def test_what_if_opens_with_the_connection_that_matters_most() -> None:
    made = explorer(tab="what_if", variants=(DNE, IA), heads=(3, 1, 2, 1))
    part: Any = made.part
    found = image_sweep(made.subject.models["dne"], made.subject.images[0], means=made.subject.means("dne"))  # type: ignore[attr-defined]
    first = found.loc[found["change"].idxmax()]
    assert (part.expert.value, part.reads.value) == (first["expert"], first["reads"]) and len(found) == 6
    before, after = (logits[0].double().softmax(0) for logits in (part.result.before, part.result.after))
    assert first["change"] == pytest.approx(50 * float((before - after).abs().sum()))
    assert part.matrix.scene["grid"] == [3, 3] and part.matrix.scene["names"][3] == "expert 3 without expert 1"
    numbers = np.frombuffer(part.matrix.scene["numbers"], dtype="<f4").reshape(3, 3)
    assert np.nanmax(numbers) == pytest.approx(first["change"]) and np.isnan(numbers).sum() == 3
    part.matrix.patch = 6  # expert 4 without expert 1
    assert (part.expert.value, part.reads.value) == (4, 1) and "keys of expert 1" in part.said.value
    part.matrix.patch = 2  # expert 2 without expert 3, which there is not
    assert (part.expert.value, part.reads.value) == (4, 1)
    made.image.value = 1
    assert part.answer.value == "" and part.matrix.layout.display == "none"  # the answer was that of another image
    part.ask.click()
    assert "matters most" in part.answer.value and part.matrix.layout.display == ""
    part.model.value = "ia"
    part.ask.click()
    assert part.answer.value == "" and part.message.value == ""  # its experts read nobody


def test_a_network_that_diverged_is_said_in_every_tab() -> None:
    broken = tiny.model(DNE, HEADS)
    with torch.no_grad():
        for parameter in tiny.expert(broken, 1).parameters():
            parameter.fill_(float("nan"))
    made = lab.explore({"broken": broken, "whole": tiny.model(DNE, HEADS)}, tiny.images(2))
    assert isinstance(made, Explorer)
    for place, part in enumerate(made.parts.values()):
        made.tabs.selected_index = place
        assert "broken computes values that are NaN or infinite" in part.message.value
    made.part.model.value = "whole"
    assert made.part.message.value == ""


def test_a_question_comes_back_with_the_weights_that_it_was_asked_with() -> None:
    made = explorer(variants=(DNE,), tab="what_if")
    made.image.value, made.part.how.value = 3, "mask"
    made.part.ask.click()
    models, images, _ = made._given
    again = lab.explore(models, images, tab="what_if", view={"image": 3} | made.part.state())
    assert isinstance(again, Explorer) and made.part.answer.value != ""
    assert again.part.answer.value == made.part.answer.value


def test_a_click_on_a_matrix_that_has_gone_does_nothing() -> None:
    few, many = tiny.model(DNE, (2, 1)), tiny.model(DNE, (1, 1, 1, 1), seed=1)
    made = lab.explore({"many": many, "few": few}, tiny.images(2), tab="what_if")
    assert isinstance(made, Explorer)
    before = made.part.matrix.patch
    made.part.model.value = "few"
    made.part.matrix.patch = 8 if before != 8 else 7  # expert 4, which few has not
    assert made.part.message.value == "" and made.part.expert.value != 4


def test_what_goes_wrong_in_a_view_is_on_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    part: Any = explorer().part
    with monkeypatch.context() as broken:
        broken.setattr(part, "update", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            part.patches.patch = 5 - part.patches.patch
    assert "ZeroDivisionError" in part.message.value and part.view.layout.display == "none"
    part.refresh()
    assert part.message.value == "" and part.view.layout.display == ""


def test_what_takes_long_is_announced_and_what_does_not_is_not() -> None:
    part: Any = explorer(tab="what_if", variants=(DNE,)).part
    told: list[str] = []
    part.busy.observe(lambda change: told.append(change["new"]), "value")
    part.seconds = 0.01  # as the last change took
    part.reads.value = "others"
    assert told == []
    part.seconds = 9.0
    part.reads.value = 1
    assert "Computing" in told[0] and "accuracy" in told[1] and told[2:] == [""]
    part.ask.click()
    assert any("Each connection" in one for one in told) and part.busy.value == ""
    assert "dne-old" not in part.view._dom_classes and 0 < part.seconds < 9


def test_two_models_have_a_difference_on_one_scale() -> None:
    made = lab.explore({v.name: tiny.model(v, HEADS) for v in (IA, STA)}, tiny.images(2), tab="looking")
    part: Any = made.part  # type: ignore[attr-defined]
    one, other = part.current().values()
    panels = part.patches.scene["panels"]
    assert panels[-1]["title"] == "ia minus sta, all heads"
    numbers = np.frombuffer(part.patches.scene["numbers"], dtype="<f4").reshape(-1, one.weights.shape[1])
    np.testing.assert_allclose(numbers[-1], one.weights.sum(0) - other.weights.sum(0), atol=1e-7)
    np.testing.assert_allclose(numbers[-1].sum(), other.class_mass - one.class_mass, atol=1e-5)
    part.right.value = ""
    assert len(part.patches.scene["panels"]) == len(panels) - 2 and "minus" not in part.scale.value


def test_shares_and_accuracies_are_saved_too() -> None:
    made = explorer()
    looking, what_if = made.parts["looking"], made.parts["what_if"]
    for part, called in ((looking, "attention_shares.csv"), (what_if, "what_if_accuracy.csv")):
        part.refresh()
        name, kind, text = part.saving.children[2]._make()
        table = pd.read_csv(io.BytesIO(text))
        assert (name, kind) == (called, "text/csv")
        if part is looking:
            shown = looking.current()
            assert table["model"].unique().tolist() == list(shown)
            mine = next(iter(shown.values())).frame()["share %"].tolist()
            assert table["share %"][:5].tolist() == pytest.approx(mine, rel=1e-5)
        else:
            assert table["before %"].tolist() == pytest.approx(part._counted["before %"].tolist(), rel=1e-5)
    blind = explorer(labels=False, tab="what_if").part
    assert blind.counted.layout.display == "none"  # no labels, no accuracy
