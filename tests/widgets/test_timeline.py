"""Through time: the slider over a run's moments, its play button, and a run that is followed while it trains."""

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import served
import tiny
import torch
from PIL import Image
from served import live
from walk import SETTLED, Stop, Walk, logged

import dne_lab as lab
from dne_lab.models.variants import DNE
from dne_lab.training.run import Run
from dne_lab.widgets import explorer as explorers
from dne_lab.widgets.explorer import Explorer

CHECKPOINTS = live.ROOT / "figures" / "checkpoints"
SMALL: dict[str, Any] = {
    "learn__epochs": 1, "tune__epochs": 1, "learn__batch": 16, "network__depth": 3, "network__head_width": 4,
    "network__heads": "2,1", "network__patch": 4, "memory__budget": 20, "progress": False, "device": "cpu",
}  # fmt: skip
browser = served.browser  # a fixture


@pytest.fixture(scope="module")
def run() -> Run:
    return lab.train("dne", lab.stream("digits", tasks=(4, 3, 3)), **SMALL)


def explored(given: Any, tab: str = "timeline") -> Explorer:
    made = lab.explore(given, (given if isinstance(given, Run) else run_of(given)).stream.test_images(10), tab=tab)
    assert isinstance(made, Explorer), made.value
    return made


def run_of(given: dict[str, Run]) -> Run:
    return next(iter(given.values()))


def test_a_moment_whose_file_is_gone_is_said_and_not_chosen(tmp_path: Path) -> None:
    lab.train("dne", lab.stream("digits", tasks=(7, 3)), **{**SMALL, "learn__batch": 256}, folder=tmp_path / "run")
    made = explored(lab.open(tmp_path / "run", progress=False), "looking")
    assert made.clock is not None
    (tmp_path / "run" / "task_01.safetensors").unlink()
    shown, made.clock.play.value = made.part.patches.scene["numbers"], True
    made.clock.moment.value = 1
    assert "task_01.safetensors does not exist" in made.refused.value
    assert made.clock.moment.value == 2 and not made.clock.play.value and made.part.patches.scene["numbers"] == shown
    made.clock.moment.value = 0
    assert made.refused.value == "" and made.clock.moment.value == 0 and made.part.patches.scene["numbers"] != shown


def test_a_run_trains_on_beside_one_whose_file_is_gone(tmp_path: Path) -> None:
    small = {**SMALL, "learn__batch": 256}
    lab.train("dne", lab.stream("digits", tasks=(7, 3)), **small, folder=tmp_path / "run")
    watched = lab.start("dne", lab.stream("digits", tasks=(7, 3)), **small)
    made = explored({"watched": watched, "beside": lab.open(tmp_path / "run", progress=False)}, "looking")
    (tmp_path / "run" / "task_01.safetensors").unlink()
    assert made.clock is not None
    made.clock.moment.value = 0
    made.subject.moment = 1  # as if it had been there while the file was
    watched.train()
    assert watched.finished and "task_01.safetensors does not exist" in made.refused.value


def test_every_moment_is_shown_in_every_tab(run: Run) -> None:
    made = explored(run)
    assert made.clock is not None
    assert [name for name, _ in made.clock.moment.options] == ["untrained", *(f"after task {t}" for t in (1, 2, 3))]
    assert made.clock.moment.value == 3  # it opens at the end
    for place, name in enumerate(made.parts):
        made.tabs.selected_index = place
        texts = set()
        for _, moment in made.clock.moment.options:
            made.clock.moment.value = moment
            if moment == 1 and name == "task":
                assert "has one expert so far" in made.part.message.value
            else:
                assert made.part.message.value == ""
                texts.add(made.part.said.value + str(vars(made.part)["patches"].scene["pixels"]))
        assert len(texts) >= 3
        made.clock.moment.value = 3


def test_what_is_seen_is_the_network_of_that_moment(run: Run) -> None:
    made = explored(run, "looking")
    assert made.clock is not None
    part: Any = made.part
    for moment in (1, 2, 3):
        made.clock.moment.value = moment
        assert part.expert.value == moment  # the newest one
        image = made.subject.images[0]
        with torch.no_grad():
            expected = run.model_at(moment)(image[None]).logits[0]
        assert torch.allclose(made.subject.scores("DNE", 0), expected, atol=1e-5)
    made.clock.newest.value = False
    part.expert.value = 2
    for moment, there in ((1, 1), (2, 2), (3, 2)):
        made.clock.moment.value = moment
        assert part.expert.value == there
    what_if: Any = made.parts["what_if"]
    made.tabs.selected_index = list(made.parts).index("what_if")
    what_if.expert.value = 2
    made.clock.moment.value = 2
    assert what_if.expert.value == 2 and "4 to 6" not in what_if.message.value


def test_through_time_tells_the_truth_and_saves(run: Run) -> None:
    made = explored(run)
    part: Any = made.part
    assert made.clock is not None
    assert "truth class 0" in part.said.value and "(truth)" in part.classes.value
    assert part.flow.value.count("<svg") == 2 and "uniform attention" in part.groups.value
    first = part.groups.value
    part.layer.value = 1
    assert part.groups.value != first and "times uniform" in part.groups.value
    part.expert.value = 1
    made.image.value = 9
    made.clock.moment.value = 1
    assert "not learned yet" in part.said.value and "no expert reads another" in part.flow.value
    assert part.numbers()["moment"].tolist()[0] == "untrained" and part.expert.value == 1
    assert part._png()[2].startswith(b"\x89PNG") and b"after task 3" in part._csv()[2]


def test_runs_side_by_side_and_a_network_without_a_past(run: Run) -> None:
    made = explored({"run": run, "alone": run.model})  # type: ignore[dict-item]
    assert made.clock is not None and made.part.model.options == ("run",)
    made.clock.moment.value = 1
    assert len(made.subject.models["run"].experts) == 1 and len(made.subject.models["alone"].experts) == 3
    alone = lab.explore(tiny.model(DNE), tiny.images(2), tab="timeline")
    assert isinstance(alone, Explorer) and alone.clock is None
    assert "without its past" in alone.part.message.value


def test_a_file_with_every_task_and_one_with_the_last_alone() -> None:
    images = tiny.images(2, (3, 32, 32))
    whole = lab.explore(CHECKPOINTS / "cifar100-medium" / "ia-s0.safetensors", images, tab="timeline")
    assert isinstance(whole, Explorer) and whole.clock is not None and len(whole.clock.moment.options) == 7
    last = lab.explore({"IA": str(CHECKPOINTS / "ia-cifar100-small-s0.safetensors")}, images, tab="timeline")
    assert isinstance(last, Explorer) and last.clock is not None
    assert [name for name, _ in last.clock.moment.options] == ["untrained", "after task 6"]
    assert last.part.message.value == "" and "no expert reads another" in last.part.flow.value  # type: ignore[attr-defined]
    missing = lab.explore("nowhere.safetensors", images)
    assert "does not exist" in missing.value


def test_a_run_that_trains_is_followed_and_learns_the_same(run: Run) -> None:
    watched = lab.start("dne", run.stream, **SMALL)
    made = explored(watched)
    assert made.clock is not None and made.clock.moment.value == 0
    seen: list[str] = []
    watched.viewers.append(lambda r: seen.append(str(made.clock.moment.label)))
    explorers_share = explorers.SHARE
    explorers.SHARE = 0  # every epoch, however long looking takes
    try:
        watched.train()
    finally:
        explorers.SHARE = explorers_share
    assert "now, in task 1" in seen and "now, in task 3" in seen and seen[-1] == "after task 3"
    same = zip(watched.model.state_dict().values(), run.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in same)
    assert made.part.message.value == "" and "after task 3" in made.part.said.value
    made.close()
    assert made.follow not in watched.viewers


def test_play_goes_from_the_start_to_the_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made = explored(run, "looking")
    assert made.clock is not None
    clock = made.clock
    monkeypatch.setattr(explorers, "SECONDS", 0.01)
    seen: list[int] = []
    clock.moment.observe(lambda change: seen.append(change["new"]), "value")

    async def play() -> None:
        clock.play.value = True
        while clock.play.value:
            await asyncio.sleep(0.01)

    monkeypatch.setattr(type(clock), "comm", "there", raising=False)
    asyncio.run(asyncio.wait_for(play(), 60))
    assert seen == [0, 1, 2, 3]


CELL = f"""import torch
import dne_lab as lab
from dne_lab.data.stream import Batch
from dne_lab.data.datasets import photographs
folder = {str(CHECKPOINTS / "cifar100-medium")!r}
files = {{m: f"{{folder}}/{{m.lower()}}-s0.safetensors" for m in ("DNE", "STA")}}
photos = photographs(32)
labels = torch.arange(len(photos)) % 3
lab.explore(files, Batch(photos, labels, torch.arange(len(photos))), tab="timeline")"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[live.Watched]:
    root = tmp_path_factory.mktemp("lab")
    cell = {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": [], "id": "a", "source": CELL}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    (root / "x.ipynb").write_text(json.dumps({"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    with live.serving("jupyterlab", root, tmp_path_factory.mktemp("state")) as server:
        seen = live.Watched(browser, server)
        seen.run_notebook("x.ipynb")
        yield seen
        seen.page.close()


def test_through_time_in_jupyterlab(page: live.Watched) -> None:
    there = page.page
    there.locator(".dne-along:visible").first.wait_for(timeout=60_000)
    handle = there.locator('.widget-hslider:has(label:text-is("moment")) .noUi-handle').first
    text = lambda: str(there.locator(".dne-said:visible").first.inner_text())  # noqa: E731
    assert text().startswith("after task 6")
    handle.focus()
    page.seconds(".dne-said", "ArrowLeft")
    assert text().startswith("after task 5")
    there.keyboard.press("Home")
    there.wait_for_function(
        "() => [...document.querySelectorAll('.dne-said')].some(e => e.innerText.startsWith('untrained'))"
    )
    there.get_by_role("button", name="play").click()
    there.wait_for_function(
        "() => [...document.querySelectorAll('.dne-said')].some(e => e.innerText.startsWith('after task 3'))",
        timeout=60_000,
    )
    there.get_by_role("button", name="play").click()
    there.get_by_role("tab", name="Spatial and joint").click()
    there.locator(".dne-shares:visible").first.wait_for(timeout=20_000)
    assert page.outside == [] and page.complaints == []
    box = there.locator(".dne-said:visible").first
    assert box.evaluate("e => e.getBoundingClientRect().right <= window.innerWidth")


def test_a_click_in_the_overview_enters_a_head_in_jupyterlab(page: live.Watched) -> None:
    there = page.page
    there.get_by_role("tab", name="Overview").click()
    titles = there.locator(".dne-row figcaption button:visible")
    titles.first.wait_for(timeout=30_000)
    sort = there.locator('.widget-dropdown:visible:has(label:text-is("sort")) select')
    before = titles.first.inner_text()
    sort.select_option(label="lowest entropy")
    there.wait_for_function(
        "before => [...document.querySelectorAll('figcaption button')].find(e => e.offsetParent).innerText !== before",
        arg=before,
    )
    name = titles.nth(1).inner_text()
    titles.nth(1).focus()
    there.keyboard.press("Enter")
    there.locator(".dne-shares:visible").first.wait_for(timeout=20_000)
    assert there.get_by_role("tab", name="Spatial and joint").get_attribute("aria-selected") == "true"
    readout = '.widget-hslider:visible:has(label:text-is("layer")) .widget-readout:text-is("{}")'
    there.locator(readout.format(name[1 : name.index(" ")])).first.wait_for()
    assert page.complaints == []


def picture(kind: str = "PNG", grey: bool = False) -> bytes:
    values = torch.arange(40 * 50).reshape(40, 50).numpy()
    image = Image.fromarray((30 * values).astype("uint16")) if grey else Image.fromarray(values.astype("uint8"))
    image.save(file := io.BytesIO(), kind)
    return file.getvalue()


def test_every_file_that_is_given_is_answered_in_words(page: live.Watched) -> None:
    there, taken = page.page, 0
    before = there.locator(".dne-caption").inner_text()
    for name, content, said in (
        ("words.txt", b"no image", "this file cannot be decoded: it is damaged, or none of JPEG"),
        ("drawn.svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "this file is an SVG drawing, which is not"),
        ("photo.heic", b"\0\0\0\x18ftypheic\0\0\0\0", "this file is a HEIC image, which is not"),
        ("cut.png", picture()[:-40], "this file cannot be decoded"),
        ("moves.gif", picture("GIF"), ""),
        ("deep<b>.png", picture(grey=True), ""),
    ):
        with there.expect_file_chooser() as asked:
            there.get_by_role("button", name="your own image").click()
        asked.value.set_files({"name": name, "mimeType": "", "buffer": content})
        line = f"{name}: {said or 'fitted from 50 x 40 to 32 x 32 pixels'}"
        there.get_by_text(line, exact=False).locator("visible=true").first.wait_for()
        taken += not said
        assert there.get_by_role("button", name=f"your own image ({taken})").count() == 1
        refused = there.locator(".dne-refused").inner_text()
        assert (line in refused) if said else refused == ""
        assert taken or there.locator(".dne-caption").inner_text() == before  # the image that is still seen
    assert page.complaints == []


def test_every_control_of_every_tab_by_keys_and_by_the_mouse(page: live.Watched) -> None:
    """One walk: Tab reaches every control in the order in which it is seen, each has a role and a name, shows that it
    has the focus, and changes something or says why not."""
    there = page.page
    there.get_by_role("tab", name="Through time").click()
    there.locator(".dne-along:visible").first.wait_for()
    walk = Walk(there, ".dne-along:visible")
    walk.begin()
    done: dict[str, Stop] = {}
    for number, name in enumerate(there.locator("[data-walked] [role=tab]").all_inner_texts()):
        tab = there.get_by_role("tab", name=name)
        tab.click()
        there.wait_for_function(SETTLED, timeout=60_000)
        stops = walk.reach()
        place = next(place for place, stop in enumerate(stops) if stop.role == "tab")
        stops = stops if number == 0 else stops[place + 1 :]
        walk.check(stops)
        titles = [stop for stop in stops if stop.found["entered"]]
        for stop in [each for each in stops if each not in titles[1:]]:
            elsewhere = ("your own image", "moment, as", "with the newest")
            if stop.role == "tab" or stop.name.startswith(elsewhere):
                continue  # used in other tests; moments have no number, the newest expert waits for the next moment
            walk.use(stop)
            done[f"{name}: {stop.role} {stop.name}"] = stop
            tab.click()  # a head or an image that is entered may have turned to another one
    # images may be in the order already that "sort" asks for
    silent = [f"{where}: {stop}" for where, stop in done.items() if not stop.answered and stop.name != "sort"]
    assert silent == [] and page.outside == [] and page.complaints == []
    assert len(done) > 60  # of six tabs
    error = "application/vnd.jupyter.stderr"
    assert there.locator(f'[data-mime-type="{error}"]').count() == 0 and logged(there) == 0


def test_memory_of_moments_is_bounded(run: Run, tmp_path: Path) -> None:
    made = explored(run)
    subject = made.subject
    for _ in range(3):
        for _, moment in made.clock.moment.options if made.clock else ():
            made.clock.moment.value = moment  # type: ignore[union-attr]
            for image in range(10):
                made.image.value = image
    assert len(subject._glances) == 4 * 10 and len(subject._means) <= 8
