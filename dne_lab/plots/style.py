"""One colour and one marker for each method, the same in every figure, told apart by colour-blind readers too.

Colours are from the palettes of Okabe and Ito and of Tol (muted); where two are close, the markers differ.
"""

import zlib
from typing import Any, NamedTuple

# Text and reference lines of figures that lie on any background: 4.6 to 1 on white, 4.1 to 1 on JupyterLab's dark one.
INK = "#757575"
GRID = "#8080804d"


class Style(NamedTuple):
    """Colour as #rrggbb, marker as matplotlib and as plotly name it."""

    colour: str
    marker: str
    symbol: str


STYLES = {
    "joint": Style("#8c6d31", "_", "line-ew"),
    "joint-resnet": Style("#666666", "|", "line-ns"),
    "ia": Style("#0072b2", "o", "circle"),
    "sta": Style("#d55e00", "s", "square"),
    "dne": Style("#009e73", "D", "diamond"),
    "progressive": Style("#cc79a7", "^", "triangle-up"),
    "finetune": Style("#999999", "v", "triangle-down"),
    "replay": Style("#56b4e9", "P", "cross"),
    "finetune-resnet": Style("#bbbbbb", "1", "y-down"),
    "replay-resnet": Style("#88ccee", "2", "y-up"),
    "icarl": Style("#e69f00", "X", "x"),
    "podnet": Style("#b03060", "<", "triangle-left"),
    "der": Style("#6a5acd", ">", "triangle-right"),
    "foster": Style("#999933", "p", "pentagon"),
    "dytox": Style("#aa4499", "h", "hexagon"),
}
OTHERS = (Style("#5b4a3f", "*", "star"), Style("#44706f", "d", "diamond-tall"), Style("#7a5195", "8", "octagon"))

# The four groups of (query, key) pairs: blue = same patch, orange = different; dark = same head, light = different.
# Okabe and Ito; told apart under every common colour blindness, and in grey the dark from the light ones.
GROUPS = {"SPSH": "#0072b2", "SPDH": "#56b4e9", "DPSH": "#d55e00", "DPDH": "#e69f00"}
GROUP_WORDS = {
    "SPSH": "same patch, same head",
    "SPDH": "same patch, different head",
    "DPSH": "different patch, same head",
    "DPDH": "different patch, different head",
}

# Lines of one method that differ in a setting (heads, tasks) share its colour.
DASHES = (("-", "solid"), ("--", "dash"), (":", "dot"), ("-.", "dashdot"))

TEXT = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
# On top of matplotlib's own defaults, so that a user's matplotlibrc does not change committed figures.
MATPLOTLIB: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    **dict.fromkeys(TEXT, INK),
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.0,
    "svg.hashsalt": "dne_lab",
    "figure.dpi": 100.0,
    "savefig.dpi": 150.0,
}
PRINT = dict.fromkeys(TEXT, "black")  # on top of it, for files that are printed


def style(method: str) -> Style:
    """The style of a method's name; one of a few for methods of a user's own, always the same for the same name."""
    return STYLES[method] if method in STYLES else OTHERS[zlib.crc32(method.encode()) % len(OTHERS)]


def solid(look: Style) -> Style:
    """The style with a marker whose area can be seen: a square in place of a line."""
    return look._replace(marker="s", symbol="square") if look.marker in ("_", "|") else look
