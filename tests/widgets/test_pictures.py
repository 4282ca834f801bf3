"""The explorers look as in the committed pictures, in JupyterLab's light theme and in its dark one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pictures
import pytest
import served
from PIL import Image, ImageFilter
from served import live

browser = served.browser  # a fixture
COMMITTED = {file.stem: Image.open(file).convert("RGB") for file in sorted(pictures.SEEN.glob("*.png"))}
COMMAND = "where that is meant, run python tests/widgets/pictures.py, look at what it wrote, and commit it"


@pytest.fixture(scope="module")
def page(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[live.Watched]:
    with pictures.opened(browser, tmp_path_factory.mktemp("pictures")) as seen:
        yield seen


def compare(name: str, now: Image.Image, folder: Path) -> str:
    """What is different, in words; then both pictures and the difference are written to the folder."""
    said, where = pictures.apart(COMMITTED[name], now)
    if said:
        COMMITTED[name].save(folder / f"{name}-committed.png")
        now.save(folder / f"{name}-now.png")
        where.save(folder / f"{name}-difference.png")
    return said


def test_every_view_looks_as_it_was_committed(page: live.Watched, tmp_path: Path) -> None:
    now, faint = {}, []
    for name, picture in pictures.taken(page.page):
        now[name] = picture
        looked, found = pictures.pale(page.page)
        faint += [f"{name}: {one}" for one in found] if looked > 100 else [f"{name}: no letters"]
    assert faint == []
    assert now.keys() == COMMITTED.keys(), COMMAND
    told = [f"{name}: {said}" for name, one in now.items() if (said := compare(name, one, tmp_path))]
    assert told == [], f"other than committed, see {tmp_path}; {COMMAND}"
    assert page.outside == [] and page.complaints == []


FAINT = "#7b7b7b"  # 4.2:1 on a white page, 4.46:1 on JupyterLab's dark one
COLOUR = """ink => {  // of a sheet, which holds for what is drawn anew too
  const sheet = document.getElementById("faint") ?? document.head.appendChild(document.createElement("style"));
  sheet.id = "faint";
  sheet.textContent = ink ? `.dne-count, .dne-count * { color: ${ink} !important; }` : "";
}"""


def test_a_grey_that_is_too_faint_for_letters_is_found(page: live.Watched) -> None:
    """Waited for: another theme has its colours some moments later, and cells that are out of sight have none."""
    there, found = page.page, f"({pictures.PALE})()[1]"
    for theme in pictures.THEMES.values():
        there.evaluate(pictures.CHANGE, theme)
        there.locator(".dne-count").first.scroll_into_view_if_needed()
        there.evaluate(COLOUR, FAINT)
        there.wait_for_function(f"{found}.some(one => one.includes('24 runs'))", timeout=20_000)
        there.evaluate(COLOUR, "")
        there.wait_for_function(f"{found}.length === 0", timeout=20_000)


HIDE = """hidden => { for (const one of document.querySelectorAll(".widget-dropdown"))
  if (one.textContent.startsWith("colours")) one.style.visibility = hidden ? "hidden" : ""; }"""
MOVE = "pixels => { document.querySelector('.dne-said').style.paddingTop = `${pixels}px`; }"
PALETTE = """from dne_lab.plots import attention_colours
attention_colours.EXPERT_COLOURS = attention_colours.EXPERT_COLOURS[::{step}]
explorer.part.refresh()"""


def test_a_hidden_control_a_moved_view_and_another_palette_are_found(page: live.Watched, tmp_path: Path) -> None:
    there, name = page.page, "task-attention-light"
    there.evaluate(pictures.CHANGE, pictures.THEMES["light"])
    place = next(pictures.views(there))[1]

    def found() -> str:
        return compare(name, pictures.still(there, place), tmp_path)

    assert found() == ""
    there.evaluate(HIDE, True)
    assert "of the square" in found() and (tmp_path / f"{name}-difference.png").exists()
    there.evaluate(HIDE, False)
    assert found() == ""
    there.evaluate(MOVE, 6)
    assert "of the square" in found()
    there.evaluate(MOVE, 30)
    assert "pixels, not" in found()
    there.evaluate(MOVE, 0)
    assert found() == ""
    for step, same in ((-1, False), (-1, True)):
        assert there.evaluate(pictures.RUN, PALETTE.format(step=step)) == "ok"
        assert (found() == "") == same


def moved(picture: Image.Image, pixels: int) -> Image.Image:
    """All below the tabs so many pixels further down."""
    found = picture.copy()
    found.paste(picture.crop((0, 200, picture.width, picture.height - pixels)), (0, 200 + pixels))
    return found


@pytest.mark.parametrize("name", ["task-attention-light", "runs-dark"])
def test_what_another_browser_may_draw_otherwise_passes_and_no_more(name: str) -> None:
    committed = COMMITTED[name]
    whole = committed.resize([pictures.HALF * side for side in committed.size], Image.Resampling.BOX)
    red, green, blue = whole.split()
    for same in (whole, moved(whole, 1), moved(whole, 2), whole.filter(ImageFilter.GaussianBlur(0.7))):
        assert pictures.apart(committed, same)[0] == ""
    for other in (moved(whole, 8), Image.merge("RGB", (blue, green, red)), whole.point(lambda value: value - 20)):
        assert "of the square" in pictures.apart(committed, other)[0]
