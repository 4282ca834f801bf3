"""The explorers in a real JupyterLab and a real Voilà: by mouse and keyboard, after a reload, without asking anybody
outside this machine."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import many_runs
import pytest
import served
from served import live

ICONS = re.compile(r"https://cdn\.jsdelivr\.net/npm/@fortawesome/fontawesome-free@[^/]+/css/(all|v4-shims)\.min\.css")
SLOW = 3.0  # seconds; CI shares its cores, figures/records/timing/explorers.json has what an idle machine needs

browser = served.browser  # a fixture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = live.laboratory(tmp_path_factory.mktemp("lab"))
    notebook = made / "07_what_if.ipynb"  # with fewer images: how many it takes is not what is looked at
    written = notebook.read_text(encoding="utf-8")
    assert written.count("stream.test_images(200)") == 1
    notebook.write_text(written.replace("stream.test_images(200)", "stream.test_images(40)"), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def jupyterlab(folder: Path, tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[live.Served]:
    with live.serving("jupyterlab", folder, tmp_path_factory.mktemp("state")) as server:
        yield server


def slider(page: Any, name: str) -> Any:
    """The handle of the visible slider with this label."""
    return page.locator(f'.widget-slider:visible:has(label:text-is("{name}")) .noUi-handle').first


def text(page: Any, selector: str, place: int = 0) -> str:
    return str(page.locator(f"{selector}:visible").nth(place).inner_text())


def pixels(page: Any, number: int = 0) -> str:
    """A visible canvas as a data address."""
    return str(page.locator(".dne-patches:visible canvas").nth(number).evaluate("canvas => canvas.toDataURL()"))


def choice(page: Any, name: str) -> Any:
    """The visible choice with this label."""
    return page.locator(f'.widget-dropdown:visible:has(label:text-is("{name}")) select')


def chosen(choice: Any) -> str:
    """What a choice shows in words."""
    return " ".join(choice.locator("option:checked").inner_text().split())


def said(page: Any, *words: str) -> None:
    """Waits until the sentences above the visible view hold all the words."""
    page.wait_for_function(
        "words => [...document.querySelectorAll('.dne-said')].some("
        "e => e.offsetParent && words.every(word => e.innerText.includes(word)))",
        arg=list(words),
    )


def changed(page: Any, selector: str, before: str) -> None:
    """Waits until what is seen there is another text."""
    page.wait_for_function(
        "([selector, before]) => "
        "[...document.querySelectorAll(selector)].some(e => e.offsetParent && e.innerText !== before)",
        arg=[selector, before],
    )


def moved(page: Any, selector: str, place: int, before: str) -> None:
    """Waits until the visible text at this place is another one."""
    page.wait_for_function(
        "([selector, place, before]) => "
        "[...document.querySelectorAll(selector)].filter(e => e.offsetParent)[place]?.innerText !== before",
        arg=[selector, place, before],
    )


def clean(seen: live.Watched) -> None:
    assert seen.outside == [] and seen.complaints == []


def test_notebook_06_in_jupyterlab(jupyterlab: live.Served, browser: Any) -> None:
    seen = live.Watched(browser, jupyterlab)
    page = seen.page
    seen.run_notebook("06_task_attention_explorer.ipynb")
    page.locator(".dne-bars:visible").first.wait_for(timeout=30_000)
    seen.bring(".dne-bars")
    first, map_before = text(page, ".dne-bars"), pixels(page, 1)
    slider(page, "layer").focus()
    assert seen.seconds(".dne-bars", "ArrowLeft") < SLOW
    second = text(page, ".dne-bars")
    assert second != first and pixels(page, 1) != map_before
    page.locator(".dne-patches:visible canvas").first.click(position={"x": 30, "y": 30})
    page.wait_for_function(
        "() => [...document.querySelectorAll('.dne-bars')].some(e => e.innerText.includes('patch 9 '))"
    )
    assert seen.seconds(".dne-bars", "ArrowDown") < SLOW  # the click has put the focus there
    third = text(page, ".dne-bars")
    assert "patch 17 (row 2, column 1)" in third and third != second
    page.locator(".dne-patches:visible canvas").nth(2).hover(position={"x": 5, "y": 5})
    assert re.search(r"expert 1 head 0, patch 0 \(row 0, column 0\): attention 0\.\d+", text(page, ".dne-told", 1))
    with page.expect_download() as saved:
        page.get_by_role("button", name="save numbers (CSV)").locator("visible=true").click()
    table = Path(saved.value.path()).read_text()
    assert saved.value.suggested_filename == "task_attention.csv" and table.startswith("row,column,key expert")

    page.get_by_role("tab", name="Spatial and joint").click()
    page.locator(".dne-shares:visible").nth(1).wait_for(timeout=10_000)
    shares = text(page, ".dne-shares", 1)
    page.locator(".dne-patches:visible").first.focus()
    assert seen.seconds(".dne-shares", "ArrowRight") < SLOW
    moved(page, ".dne-shares", 1, shares)

    seen.reload()
    page.locator(".dne-shares:visible").first.wait_for(timeout=60_000)
    seen.bring(".dne-shares")
    before, map_before = text(page, ".dne-shares"), pixels(page, 1)
    slider(page, "layer").focus()
    assert seen.seconds(".dne-shares", "ArrowRight") < SLOW
    assert text(page, ".dne-shares") != before and pixels(page, 1) != map_before
    clean(seen)
    page.close()


def test_notebook_07_in_jupyterlab(jupyterlab: live.Served, browser: Any) -> None:
    seen = live.Watched(browser, jupyterlab)
    page = seen.page
    seen.run_notebook("07_what_if.ipynb")
    page.locator(".dne-classes:visible").first.wait_for(timeout=30_000)
    seen.bring(".dne-classes")
    off, reader = choice(page, "switch off"), choice(page, "as read by")
    reader.select_option(label="all")
    off.select_option(label="no expert")
    for _ in range(4):  # as fast as a hand on the keys, or faster: nothing of it may be lost
        off.press("ArrowDown")
        reader.press("ArrowDown")
    assert (chosen(off), chosen(reader)) == ("expert 3", "expert 4")
    said(page, "keys of expert 3 in ", "experts 4,")
    reader.select_option(label="all")
    off.select_option(label="no expert")
    said(page, "nothing is off")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.dne-accuracy')].filter(e => e.offsetParent).every(e => "
        "[...e.querySelectorAll('tr')].slice(1).every(row => row.cells[2].innerText === row.cells[3].innerText))"
    )
    classes, accuracy = text(page, ".dne-classes"), text(page, ".dne-accuracy")
    off.press("ArrowDown")
    changed(page, ".dne-accuracy", accuracy)
    assert chosen(off) == "all other experts"
    assert seen.seconds(".dne-classes", "ArrowDown") < SLOW
    assert chosen(off) == "expert 1"
    said(page, "keys of expert 1 in ")
    assert text(page, ".dne-classes") != classes and "bit for bit the same" in text(page, ".dne-moved")
    classes = text(page, ".dne-classes")
    slider(page, "image").focus()
    assert seen.seconds(".dne-classes", "ArrowRight") < SLOW
    assert text(page, ".dne-classes") != classes
    page.get_by_role("tab", name="Task attention").click()
    page.locator(".dne-patches:visible canvas").first.click(position={"x": 20, "y": 20})
    page.get_by_role("tab", name="What if").click()

    seen.reload()
    page.locator(".dne-classes:visible").first.wait_for(timeout=60_000)
    seen.bring(".dne-classes")
    assert chosen(off) == "expert 1"
    before = text(page, ".dne-classes")
    slider(page, "image").focus()
    assert seen.seconds(".dne-classes", "ArrowRight") < SLOW
    assert text(page, ".dne-classes") != before
    clean(seen)
    page.close()


def test_notebook_06_under_voila(folder: Path, tmp_path: Path, browser: Any) -> None:
    with live.serving("voila", folder / "06_task_attention_explorer.ipynb", tmp_path) as server:
        seen = live.Watched(browser, server, width=1000)
        page = seen.page
        page.goto(server.address, timeout=90_000)  # Voilà runs the notebook before it answers
        page.locator(".dne-bars:visible").first.wait_for(timeout=90_000)
        assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")  # nothing to the side
        first, picture = text(page, ".dne-bars"), pixels(page, 1)
        slider(page, "layer").focus()
        assert seen.seconds(".dne-bars", "ArrowLeft") < SLOW
        assert text(page, ".dne-bars") != first and pixels(page, 1) != picture
        page.locator(".dne-patches:visible canvas").first.click(position={"x": 30, "y": 30})
        page.wait_for_function("() => document.querySelector('.dne-bars').innerText.includes('patch 9 ')")
        assert all(ICONS.fullmatch(asked) for asked in seen.outside)  # Voilà's own icons
        assert all("Failed to load resource" in said for said in seen.complaints)
        assert len(seen.complaints) <= len(seen.outside)  # one for each that is not reached, and nothing else
        page.close()


def test_runs_by_mouse_and_keyboard_beside_another_explorer_and_after_a_restart(
    folder: Path, jupyterlab: live.Served, browser: Any
) -> None:
    """Filter, groups, pair and details; two explorers in one notebook do not touch each other."""
    many_runs.make(folder / "runs", 24)
    model = "../figures/checkpoints/dne-digits-s0.safetensors"
    cells(folder / "many.ipynb", "import dne_lab as lab\nlab.explore_runs('runs')", f"""\
lab.explore(lab.open({model!r}).model, lab.stream("digits").test_images(30), tab="gallery")""")  # fmt: skip
    seen = live.Watched(browser, jupyterlab)
    page = seen.page
    seen.run_notebook("many.ipynb")
    lines = page.locator(".dne-curves path.js-line")
    lines.first.wait_for(timeout=60_000)
    page.locator(".dne-spread:visible").first.wait_for(timeout=30_000)
    assert page.locator(".dne-spread:visible").count() == 1 and page.locator(".dne-curves:visible").count() == 1
    other = text(page, ".dne-by-class")

    field, before = page.get_by_role("textbox", name="filter"), text(page, ".dne-table")
    field.focus()
    page.keyboard.type("dne seed=1 finished")
    page.keyboard.press("Enter")
    changed(page, ".dne-table", before)
    assert "4 of 24 runs fit the filter" in text(page, ".dne-count") and "IA" not in text(page, ".dne-table")
    field.fill("")
    page.keyboard.press("Enter")
    tick = page.get_by_role("checkbox", name="group by configuration")
    tick.focus()
    page.keyboard.press("Space")
    page.locator(".dne-difference:visible").wait_for()
    assert "12 configurations" in text(page, ".dne-count") and "DNE (k = 1) minus IA" in text(page, ".dne-difference")
    before = text(page, ".dne-difference")
    page.get_by_role("combobox", name="minus").press("ArrowDown")
    changed(page, ".dne-difference", before)
    before = text(page, ".dne-confusion")
    page.get_by_role("combobox", name="details of").select_option(index=1)
    changed(page, ".dne-confusion", before)
    before = text(page, ".dne-confusion")
    slider(page, "after task").press("ArrowLeft")
    changed(page, ".dne-confusion", before)
    assert "after task 5" in text(page, ".dne-confusion")
    with page.expect_download() as saved:
        page.get_by_role("button", name="save curves (CSV)").click()
    assert Path(saved.value.path()).read_text().startswith("configuration,run,method")
    page.get_by_role("button", name="copy as code").first.click()
    page.locator(".dne-code:visible").wait_for()
    assert "'group by configuration (mean over seeds)': True" in page.locator(".dne-code:visible").input_value()
    assert text(page, ".dne-by-class") == other
    clean(seen)

    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    page.evaluate(live.RUN_ALL)
    lines.first.wait_for(timeout=60_000)
    before = text(page, ".dne-table")
    page.get_by_role("checkbox", name="group by configuration").check()
    changed(page, ".dne-table", before)
    assert seen.outside == []  # the console tells of widgets whose kernel has ended
    page.close()


def cells(place: Path, *sources: str) -> None:
    """Writes a notebook with these cells."""
    made = [
        {"cell_type": "code", "id": str(i), "metadata": {}, "execution_count": None, "outputs": [], "source": source}
        for i, source in enumerate(sources)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    place.write_text(
        json.dumps({"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5})
    )
