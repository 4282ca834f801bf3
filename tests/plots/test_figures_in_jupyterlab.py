"""Every figure in a real JupyterLab, in two widths: no wider than its cell, nothing cut, the same height under the
mouse, and what plotly drew is what the marks say."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "widgets"))
import served
from served import live

ROOT = Path(__file__).parents[2]
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
WIDTHS = (1280, 1000)  # pixels of the window
# Every kind of figure that has marks, from committed records: no cell of these trains or reads an image.
SHOW = """
import sys
from pathlib import Path
from dne_lab.commands import report
from dne_lab.measure import record
R = Path(FIGURES) / "records"
made = {}
for name in ("reproduce_digits_s0-4", "digits100-steps", "cifar100-small-baselines"):
    made |= {f"{name} {kind}": figure for kind, figure in report.drawings(record.find(R / name)).items()}
made |= report.measurements([R / name for name in ("cost", "timing", "attention", "ablation", "probe")])
"""
MOST = 40  # figures in a cell: JupyterLab shows 50 outputs of one
PART = "for figure in [*made.values()][{start}:{end}]:\n    display(figure)"
HELD = """() => [...document.querySelectorAll(".js-plotly-plot")].map(plot => ({
  data: plot._fullData.map((trace, i) => ({
    type: trace.type, name: trace.name, shown: trace.visible, x: plot.data[i].x, y: plot.data[i].y, z: plot.data[i].z,
    base: plot.data[i].base,
    error: (trace.error_y?.visible && trace.error_y) || (trace.error_x?.visible && trace.error_x)
  })).map(({error, ...rest}) => ({...rest, up: error?.array ?? null, down: error?.arrayminus ?? null})),
  axes: Object.fromEntries(Object.entries(plot._fullLayout).filter(([key]) => /^[xy]axis\\d*$/.test(key)).map(
    ([key, axis]) => [key, {type: axis.type, range: axis.range, ticktext: axis.ticktext ?? null}]))}))"""


browser = served.browser  # a fixture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed notebooks, and one that shows every figure of the records."""
    made = live.laboratory(tmp_path_factory.mktemp("figures"))
    codes = [SHOW.replace("FIGURES", repr(str(ROOT / "figures")))]
    codes += [PART.format(start=start, end=start + MOST) for start in (0, MOST)]
    cells = [nbformat.v4.new_code_cell(code) for code in codes]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL})
    nbformat.write(notebook, made / "every_figure.ipynb")
    return made


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[live.Served]:
    with live.serving("jupyterlab", folder, tmp_path_factory.mktemp("state")) as running:
        yield running


@pytest.fixture(scope="module")
def seen(server: live.Served, browser: Any) -> Iterator[live.Watched]:
    """All figures, executed once, in the wider window."""
    watched = live.Watched(browser, server, width=WIDTHS[0])
    watched.run_notebook("every_figure.ipynb")
    watched.page.wait_for_function(
        "() => { const all = [...document.querySelectorAll('.jp-RenderedPlotly')];"
        " return all.length > 20 && all.every(one => one.querySelector('.main-svg')); }",
        timeout=60_000,
    )
    yield watched
    watched.page.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_every_figure_fits_its_cell_and_keeps_its_height(seen: live.Watched, width: int) -> None:
    page = seen.page
    before = live.at_rest(page, width)
    assert len(before) > 30 and live.misfits(before) == []
    for plot in page.locator(".js-plotly-plot").all()[:: 4 if width == WIDTHS[0] else 9]:
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_timeout(300)
    after = page.evaluate(live.MEASURE)
    assert [(one["width"], one["height"]) for one in after] == [(one["width"], one["height"]) for one in before]
    assert seen.outside == []


def test_what_the_browser_holds_is_what_the_marks_say(seen: live.Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DNE_LAB_FIGURES", raising=False)
    from test_marks import FIGURES

    held = seen.page.evaluate(HELD)
    figures = [figure for name, figure in FIGURES.items() if name not in ("besides", "entropy over images")]
    assert len(held) == len(figures)
    for shown, figure in zip(held, figures, strict=True):
        meant = json.loads(json.dumps(figure._repr_mimebundle_()[0]["application/vnd.plotly.v1+json"]))
        assert len(shown["data"]) == len(meant["data"])
        for trace, wanted in zip(shown["data"], meant["data"], strict=True):
            assert trace["type"] == wanted["type"] and trace["shown"] is True
            assert all(trace[key] == wanted.get(key) for key in ("x", "y", "z", "base"))
            error = wanted.get("error_y") or wanted.get("error_x") or {}
            assert (trace["up"], trace["down"]) == (error.get("array"), error.get("arrayminus"))
        for name, axis in shown["axes"].items():
            wanted = meant["layout"][name]
            assert (axis["type"], axis["ticktext"]) == (wanted["type"], wanted.get("ticktext"))
            # Of a matrix in a narrow cell plotly keeps the squares and the ends.
            assert axis["range"] == pytest.approx(wanted["range"], abs=0.02)


def test_pictures_fit_their_cell(
    server: live.Served, folder: Path, browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a committed notebook holds, as a reader opens it, before anything runs."""
    monkeypatch.setenv("DNE_LAB_FIGURES", "static")
    from test_marks import FIGURES

    chosen = [figure for figure in FIGURES.values() if figure.size[0] > 8] + [FIGURES["expert_flow_sta_digits100"]]
    bundles = [figure._repr_mimebundle_() for figure in chosen[:6]]
    shown = [nbformat.v4.new_output("display_data", data=data, metadata=more) for data, more in bundles]
    assert len(shown) == 6
    cell = nbformat.v4.new_code_cell("", outputs=shown, execution_count=1)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": KERNEL}), folder / "pictures.ipynb")
    watched = live.Watched(browser, server, width=WIDTHS[0])
    watched.page.goto(f"{watched.address}/lab/tree/pictures.ipynb?reset")
    watched.page.wait_for_function("() => document.querySelectorAll('.jp-RenderedImage img').length === 6")
    for width in WIDTHS:
        watched.page.set_viewport_size({"width": width, "height": 1000})
        watched.page.wait_for_timeout(500)
        for figure, image in zip(chosen, watched.page.evaluate(live.PICTURES), strict=False):
            assert image["width"] == pytest.approx(min(100 * figure.size[0], image["area"]), abs=2), figure.name
            assert image["width"] / image["height"] == pytest.approx(image["natural"], rel=0.02), figure.name
    watched.page.close()
