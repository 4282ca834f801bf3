"""Marks and letters stand out on a light and on a dark page, whatever draws them."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as Canvas

from dne_lab.plots import interactive, static
from dne_lab.plots.marks import Axis, Bars, Drawing, Panel, Points, Spread
from dne_lab.plots.style import (
    COLOURS,
    EXPERT_COLOURS,
    GROUP_COLOURS,
    INK,
    LEAST_CONTRAST,
    PAGES,
    STYLES,
    Style,
    contrast,
    edged,
    other,
    style,
)
from dne_lab.plots.vector import chart

PALETTES = [*EXPERT_COLOURS, *GROUP_COLOURS.values(), *COLOURS, *(look.colour for look in STYLES.values())]
OKABE = ("#e69f00", "#56b4e9")  # the two that an edge makes up for
EVERY = pytest.mark.parametrize("colour", dict.fromkeys(PALETTES))


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21) and contrast("#777777", "#777777") == 1
    assert contrast("#ffffff", "#767676") == pytest.approx(4.54, abs=0.005)  # the grey that just suffices for text


def test_ink_is_seen_on_both_pages() -> None:
    """Edges need 3:1. Letters of figures on any background need 4.5:1, which no one colour has on both: 4.5:1 on white,
    and on the dark page nearly the most that is left."""
    assert min(contrast(INK, page) for page in PAGES) >= LEAST_CONTRAST
    most = max(contrast(f"#{grey:02x}{grey:02x}{grey:02x}", PAGES[1]) for grey in range(256) if _suits_white(grey))
    assert contrast(INK, PAGES[0]) >= 4.5 and contrast(INK, PAGES[1]) >= most - 0.1


def _suits_white(grey: int) -> bool:
    return contrast(f"#{grey:02x}{grey:02x}{grey:02x}", PAGES[0]) >= 4.5


@EVERY
def test_colours_stand_out_but_for_two(colour: str) -> None:
    least = min(contrast(colour, page) for page in PAGES)
    assert (least < LEAST_CONTRAST) == edged(colour) == (colour in OKABE)


def test_methods_of_ones_own_are_seen_too() -> None:
    assert not any(edged(other(number).colour) for number in range(len(COLOURS)))


def test_markers_without_an_inside_have_a_colour_that_needs_no_edge() -> None:
    assert not [name for name in STYLES if style(name).marker in static.THIN and edged(style(name).colour)]


def panels(colour: str, filled: bool = True) -> list[Panel]:
    """A line with markers, bars and boxes."""
    look = Style(colour, "o", "circle")
    line = Points("a", [0.0, 1.0], [0.0, 1.0], look, "-", filled=filled, low=[-0.1, 0.9], high=[0.1, 1.1])
    bars = Bars("b", [0], [1.0], colour, across=True)
    return [
        Panel([line], Axis("x"), Axis("y")),
        Panel([bars], Axis("x"), Axis("", "category", ("a",))),
        Panel([Spread("c", [0], [[1.0, 2.0, 3.0, 9.0]], colour)], Axis("", "category", ("a",))),
    ]


@EVERY
def test_svg_draws_the_edge(colour: str) -> None:
    line, bars, _ = panels(colour)
    drawn, lying, pale = chart(line), chart(bars, row=20), edged(colour)
    assert (f'stroke="{INK}" stroke-width="4"' in drawn) == pale  # below the line
    assert (f'fill="{colour}" stroke="{INK}"' in drawn) == pale  # around its circles
    assert (f'stroke="{INK}" stroke-width="1"' in lying) == pale


@EVERY
@pytest.mark.parametrize("filled", [True, False])
def test_plotly_draws_the_edge(colour: str, filled: bool) -> None:
    pytest.importorskip("plotly")
    tree = interactive.build(Drawing([panels(colour, filled)]), "t", 3.0)
    lines = [trace for trace in tree["data"] if trace.get("mode") == "lines+markers"]
    bar = next(trace for trace in tree["data"] if trace["type"] == "bar")
    box = next(trace for trace in tree["data"] if trace["type"] == "box")
    assert lines[-1]["line"]["color"] == colour and lines[-1]["hoverinfo"] == "text"
    assert bar["marker"]["line"] == ({"color": INK, "width": 1} if edged(colour) else {})
    assert box["line"]["color"] == (INK if edged(colour) else colour)
    assert len(lines) == 1 + edged(colour)
    if edged(colour):
        below, above = lines
        assert below["line"]["color"] == INK and below["line"]["width"] == above["line"]["width"] + 2
        assert below["marker"]["line"]["width"] == above["marker"]["line"]["width"] + 2
        assert below["error_y"]["thickness"] == above["error_y"]["thickness"] + 2
        assert below["hoverinfo"] == "skip" and not below["showlegend"] and below["legendgroup"] == "a"


@pytest.mark.parametrize("colour", [*OKABE, "#0072b2"])
@pytest.mark.parametrize("filled", [True, False])
def test_matplotlib_draws_the_edge(colour: str, filled: bool) -> None:
    """Ink is seen beside the colour: of lines, markers and bars of a pale one, and of no other."""
    for panel in panels(colour, filled):
        canvas = Canvas(figsize=(2, 2), dpi=200)
        axes = canvas.add_subplot()
        static.draw(axes, Drawing([[panel]]))
        axes.set_axis_off()
        for text in (*axes.texts, *canvas.legends, *([axes.get_legend()] if axes.get_legend() else [])):
            text.set_visible(False)
        page = FigureCanvasAgg(canvas)
        page.draw()
        seen = np.asarray(page.buffer_rgba())[..., :3]
        inks = {to_hex(rgb / 255) for rgb in np.unique(seen.reshape(-1, 3), axis=0)}
        assert (INK in inks) == edged(colour), panel.marks[0]
