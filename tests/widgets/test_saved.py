"""The explorer as one file: what is in it, what it refuses, and that it works from a disk without asking anybody."""

import base64
import gzip
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served
import tiny
import torch

import dne_lab as lab
from dne_lab.core.errors import LabError
from dne_lab.data.stream import Batch
from dne_lab.models.variants import DNE, IA, STA
from dne_lab.widgets import saved
from dne_lab.widgets.explorer import Explorer

browser = served.browser  # a fixture
STRANGE = "</script><img src=x onerror=alert(1)> {title} DATA"


def explorer(variants: Any = (DNE, STA), heads: tuple[int, ...] = (3, 1, 2), names: Any = ("cat", "dog")) -> Explorer:
    models = {variant.name: tiny.model(variant, heads, depth=3) for variant in variants}
    made = lab.explore(models, Batch(tiny.images(4), torch.arange(4) % 2, torch.arange(4)), names)
    assert isinstance(made, Explorer)
    return made


def data_of(path: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])  # type: ignore[no-any-return]


def test_the_committed_page_is_drawn_by_the_code_of_today() -> None:
    page = (Path(__file__).parents[2] / "figures" / "explorer.html").read_text()
    assert saved.STYLE in page and saved.SCRIPT in page


def test_the_page_holds_every_head_of_what_was_chosen(tmp_path: Path) -> None:
    made = explorer()
    path = made.save(tmp_path / "attention.html", images=[1, 3], layers=[0, 1], experts=[2, 3])
    data = data_of(path)
    assert list(data["models"]) == ["dne", "sta"] and len(data["images"]) == 2
    dne = data["models"]["dne"]
    assert {head["layer"] for head in dne["heads"]} == {0, 1} and {head["expert"] for head in dne["heads"]} == {2, 3}
    found = [h for h in made.subject.heads("dne", 3) if h.layer in (0, 1) and h.expert in (2, 3)]  # type: ignore[attr-defined]
    raw, at = gzip.decompress(base64.b64decode(dne["images"][1]["packed"])), 0
    for head, one, most in zip(dne["heads"], found, dne["images"][1]["most"], strict=True):
        values = np.frombuffer(raw, np.uint8, one.maps.size, at).reshape(one.maps.shape)
        at += one.maps.size + 2 * len(one.spread) + (0 if one.groups is None else 2 * one.groups.size)
        assert np.abs(most * (values / 255) ** 2 - one.maps).max() <= 0.005 * most
        assert (head["layer"], head["expert"], head["head"]) == (one.layer, one.expert, one.head)
    assert at == len(raw)
    assert "predicts" in dne["images"][0]["said"] and "truth dog" in dne["images"][0]["said"]


def test_it_opens_where_the_explorer_is(tmp_path: Path) -> None:
    made = explorer()
    made.tabs.selected_index = list(made.parts).index("task")
    part: Any = made.part
    part.block.value, part.expert.value, part.layer.value, part.patches.patch = "task2", 3, 1, 5
    made.image.value = 2
    start = data_of(made.save(tmp_path / "a.html"))["start"]
    wanted = {"model": "dne", "kind": "task2", "expert": 3, "layer": 1, "patch": 5, "image": 2}
    assert {name: start[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("file", "choice", "said"),
    [
        ("a.txt", {}, "ends in .html"),
        ("a.html", {"images": [9]}, "there are 0 to 3"),
        ("a.html", {"layers": [7]}, "there are 0 to 2"),
        ("a.html", {"experts": []}, "there are 1 to 3"),
        ("a.html", {"images": range(10**9)}, r"images = range\(0, 1000000000\): there are 0 to 3"),
        ("a.html", {"images": 5}, "images = 5: give a list of whole numbers; there are 0 to 3"),
        ("a.html", {"images": [1.5]}, "give a list of whole numbers"),
        ("a.html", {"images": "12"}, "give a list of whole numbers"),
        ("a.html", {"images": itertools.repeat(1)}, "give a list of whole numbers"),
        ("a.html", {"layers": [None]}, "give a list of whole numbers; there are 0 to 2"),
        ("a.html", {"experts": 1}, "give a list of whole numbers; there are 1 to 3"),
    ],
)
def test_what_it_refuses(file: str, choice: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(LabError, match=said):
        explorer((IA,)).save(tmp_path / file, **choice)
    assert list(tmp_path.iterdir()) == []


def test_numbers_may_come_from_arrays(tmp_path: Path) -> None:
    path = explorer((IA,)).save(tmp_path / "a.html", images=np.array([2, 2, 0]), layers=torch.tensor([1]))  # type: ignore[arg-type]
    assert len(data_of(path)["images"]) == 2


def test_only_saved_explorers_are_replaced(tmp_path: Path) -> None:
    made, path = explorer((IA,)), tmp_path / "a.html"
    first = made.save(path, images=[0]).read_bytes()
    assert made.save(path).read_bytes() != first  # its own
    for content in (b"<!doctype html>\n<title>Attention of mine</title>", b"", first[100:]):
        path.write_bytes(content)
        with pytest.raises(LabError, match=r"a\.html is there, and no saved explorer: name another"):
            made.save(path)
        assert path.read_bytes() == content and [file.name for file in tmp_path.iterdir()] == ["a.html"]
    assert made.save(path, images=[0], force=True).read_bytes() == first
    path.unlink()
    path.mkdir()
    with pytest.raises(LabError, match="is a folder"):
        made.save(path, force=True)


def test_the_committed_page_can_be_replaced() -> None:
    assert (Path(__file__).parents[2] / "figures" / "explorer.html").read_bytes().startswith(saved.OURS)


def test_a_page_that_grows_too_large_stops_at_the_image_that_is_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = explorer((IA,))
    monkeypatch.setattr(saved, "LARGEST", 1e-6)
    asked: list[int] = []
    real = made.subject.heads
    monkeypatch.setattr(made.subject, "heads", lambda name, image: (asked.append(image), real(name, image))[1])
    with pytest.raises(LabError, match="give fewer images, layers or experts"):
        made.save(tmp_path / "a.html")
    assert asked == [0] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variant", [DNE, STA], ids=tiny.names)
def test_eight_images_of_64_patches_are_below_five_megabytes(variant: Any, tmp_path: Path) -> None:
    shape = (3, 32, 32)
    model = tiny.model(variant, (4, 1, 1, 1, 1, 1), shape=shape, depth=6, **tiny.AUTHORS)
    made = lab.explore({"it": model}, tiny.images(8, shape))
    assert isinstance(made, Explorer)
    assert made.save(tmp_path / "a.html").stat().st_size < 5e6


def page_of(browser: Any, path: Path, width: int = 1280) -> tuple[Any, list[str]]:
    page = browser.new_page(viewport={"width": width, "height": 900})
    seen: list[str] = []
    page.on("console", lambda said: seen.append(said.text))
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on("request", lambda asked: None if asked.url == path.as_uri() else seen.append(asked.url))
    page.goto(path.as_uri())
    page.wait_for_function("() => document.body.dataset.drawn")
    return page, seen


def settled(page: Any, before: str) -> None:
    page.wait_for_function("before => document.body.dataset.drawn !== before", arg=before)


def test_every_control_works_from_the_disk(tmp_path: Path, browser: Any) -> None:
    page, seen = page_of(browser, explorer((DNE, STA)).save(tmp_path / "a.html"))

    def shown() -> str:
        canvases = page.locator("canvas:visible")
        pictures = [canvases.nth(n).evaluate("canvas => canvas.toDataURL()") for n in range(canvases.count())]
        return str(page.locator("body").inner_text()) + "".join(pictures)

    for label in ("attention", "show", "sort", "colours", "model"):
        select = page.locator(f"label:has-text('{label}') select")
        for name, value in (("attention", "patches"), ("show", "all" if label == "sort" else "one")):
            page.locator(f"label:has-text('{name}') select").select_option(value)
        page.wait_for_timeout(300)
        states = set()
        for value in select.locator("option").evaluate_all("options => options.map(option => option.value)"):
            drawn = page.evaluate("document.body.dataset.drawn")
            if select.input_value() != value:
                select.select_option(value)
                settled(page, drawn)
            states.add(shown())
        assert len(states) > 1, label
    page.locator("label:has-text('model') select").select_option("dne")
    page.locator("label:has-text('attention') select").select_option("patches")
    page.locator("label:has-text('show') select").select_option("one")
    for label in ("image", "layer", "task (expert)", "query head"):
        control, drawn, before = page.locator(f"label:has-text('{label}') input"), "", shown()
        control.focus()
        for key in ("Home", "End"):
            drawn = page.evaluate("document.body.dataset.drawn")
            page.keyboard.press(key)
            page.wait_for_timeout(150)
        assert drawn and (shown() != before or control.is_disabled()), label
    page.locator(".dne-patches:visible").first.focus()
    for key, column in (("Home", 0), ("ArrowRight", 1), ("End", 2)):
        page.keyboard.press(key)
        page.wait_for_function(f"() => document.querySelector('caption').innerText.includes('column {column})')")
    assert seen == []
    page.close()


def test_numbers_on_the_page_are_those_of_the_network(tmp_path: Path, browser: Any) -> None:
    made = explorer((STA,))
    path = made.save(tmp_path / "a.html")
    page, seen = page_of(browser, path)
    start = data_of(path)["start"]
    head = next(
        h for h in made.subject.heads("sta", 0)  # type: ignore[attr-defined]
        if (h.layer, h.expert, h.head) == (start["layer"], start["expert"], start["head"])
    )  # fmt: skip
    text = page.locator("#view").inner_text()
    others = len(head.key_expert) - 1
    keys = np.array([1, others, 5, 5 * others])
    for share, there in zip(head.groups[start["patch"]], keys / keys.sum(), strict=True):
        if there:
            assert f"{100 * share:.2f}" in text and f"{100 * there:.2f}" in text
    canvas = page.locator("canvas:visible").last
    box = canvas.bounding_box()
    canvas.hover(position={"x": box["width"] * 0.9, "y": box["height"] * 0.9})
    told = page.locator(".dne-told:visible").first.inner_text()
    value = float(told.rsplit(" ", 1)[1])
    assert "patch 5" in told and value == pytest.approx(
        float(head.maps[start["patch"], 5]), abs=0.006 * float(head.maps.max())
    )
    page.locator("label:has-text('show') select").select_option("all")
    page.locator("figcaption button:visible").nth(2).click()
    page.wait_for_function("() => document.querySelector('table caption')")
    assert page.locator("label:has-text('show') select").input_value() == "one" and seen == []
    page.close()


def test_names_from_outside_stay_words(tmp_path: Path, browser: Any) -> None:
    models = {STRANGE: tiny.model(DNE, (2, 1))}
    made = lab.explore(models, Batch(tiny.images(1), torch.zeros(1, dtype=torch.long), torch.arange(1)), [STRANGE] * 4)
    assert isinstance(made, Explorer)
    page, seen = page_of(browser, made.save(tmp_path / "a.html"))
    assert page.locator("img").count() == 0 and seen == []
    assert (
        page.locator("h1").inner_text() == f"Attention of {STRANGE}" and STRANGE in page.locator("#said").inner_text()
    )
    page.close()


def test_it_fits_a_telephone(tmp_path: Path, browser: Any) -> None:
    path = explorer((DNE,)).save(tmp_path / "a.html")
    page, seen = page_of(browser, path, width=390)
    for view in ("one", "all"):
        for kind in ("patches", "task1"):
            page.locator("label:has-text('attention') select").select_option(kind)
            page.locator("label:has-text('show') select").select_option(view)
            page.wait_for_timeout(300)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
    names = page.locator("select, input").evaluate_all("all => all.map(one => one.labels.length > 0)")
    assert all(names) and seen == []
    page.close()
