"""One colour and one marker for each method, the same in every figure, told apart by colour-blind readers too.

Colours are from the palettes of Okabe and Ito and of Tol (muted); where two are close, the markers differ. They stand
out 3:1 on a light and on a dark page, but for the orange and the light blue of Okabe and Ito: an orange as dark as that
is the vermilion of colour-blind readers. Marks in these have an edge, whatever draws them: see `edged`.
"""

from typing import Any, NamedTuple

from dne_lab.analysis.labelling import GROUPS
from dne_lab.models.attention import CLASS, JOINT, SPATIAL, TASK1, TASK2

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
    "finetune": Style("#949494", "v", "triangle-down"),
    "replay": Style("#56b4e9", "P", "cross"),
    "finetune-resnet": Style("#637e87", "1", "y-down"),
    "replay-resnet": Style("#4890c6", "2", "y-up"),
    "icarl": Style("#e69f00", "X", "x"),
    "podnet": Style("#b03060", "<", "triangle-left"),
    "der": Style("#6a5acd", ">", "triangle-right"),
    "foster": Style("#999933", "p", "pentagon"),
    "dytox": Style("#aa4499", "h", "hexagon"),
    "linear-probe": Style("#117733", ".", "circle-dot"),
    "ncm": Style("#90487e", "x", "x-thin"),
    "ranpac": Style("#907efc", "+", "cross-thin"),
}
# Of methods of a user's own: colours and markers in turn, so that the first thirty are told apart.
COLOURS = ("#bd6c63", "#44706f", "#7a5195", "#c2185b", "#4b7d1c")
MARKERS = (
    *(("*", "star"), ("d", "diamond-tall"), ("8", "octagon")),
    *(("H", "hexagon2"), ("3", "y-left"), ("4", "y-right")),
)

# The four groups of (query, key) pairs: blue = same patch, orange = different; dark = same head, light = different.
# Okabe and Ito; told apart under every common colour blindness, and in grey the dark from the light ones.
GROUP_COLOURS = dict(zip(GROUPS, ("#0072b2", "#56b4e9", "#d55e00", "#e69f00"), strict=True))
GROUP_WORDS = {
    group: f"{'same' if group[0] == 'S' else 'different'} patch, {'same' if group[2] == 'S' else 'different'} head"
    for group in GROUPS
}

KIND_WORDS = {
    SPATIAL: "spatial attention",
    JOINT: "joint attention",
    TASK1: "first task block",
    TASK2: "second task block",
    CLASS: "class attention",
}

# Experts, which are categories: Okabe and Ito and Tol, ten before the first comes again (the number stands beside it).
EXPERT_COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"),
    *("#56b4e9", "#6a5acd", "#999933", "#b03060", "#8c6d31"),
)

# Lines of one method that differ in a setting (heads, tasks) share its colour: see `line_of`.
DASHES = (("-", "solid"), ("--", "dash"), (":", "dot"), ("-.", "dashdot"))

PAGES = ("#ffffff", "#111111")  # of JupyterLab, light and dark
LEAST_CONTRAST = 3.0  # of marks with the page (WCAG 2, 1.4.11)

DARKEST, PALEST = 0.6, 0.4  # how much black or white is in the last tones of a colour: see `tone`

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


_own: dict[str, int] = {}  # methods of a user's own, in the order in which they first appeared


def style(method: str) -> Style:
    """The style of a method's name. Methods of a user's own get the next ones that are free, in the order in which they
    appear, and keep them as long as the program runs."""
    return STYLES[method] if method in STYLES else other(_place(method))


def other(number: int) -> Style:
    """The ``number``-th (0, 1, ...) of the styles that no method has."""
    return Style(COLOURS[number % len(COLOURS)], *MARKERS[number % len(MARKERS)])


class Line(NamedTuple):
    """A line with markers: colour and marker, dashes as matplotlib names them, whether the markers are filled."""

    look: Style
    dash: str
    filled: bool


def line_of(method: str, number: int) -> Line:
    """The ``number``-th (0, 1, ...) series of a method: its colour and marker, other dashes, every second one hollow.

    From the fifth on the dashes come again, in a paler colour. Methods of a user's own begin with other dashes.
    """
    first = 0 if method in STYLES else _place(method)
    dash, _ = DASHES[(number + first) % len(DASHES)]
    look = style(method)
    look = look._replace(colour=paler(look.colour, number // len(DASHES)))
    return Line(look, dash, number % 2 == 0)


def contrast(one: str, other: str) -> float:
    """How far two colours #rrggbb stand out from one another, 1 to 21: the contrast ratio of WCAG 2."""
    low, high = sorted(map(_luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def edged(colour: str) -> bool:
    """Whether marks of this colour need an edge (in `INK`) to be seen on a light and on a dark page."""
    return min(contrast(colour, page) for page in PAGES) < LEAST_CONTRAST


def tone(colour: str, number: int, of: int) -> str:
    """The ``number``-th of so many tones of a colour #rrggbb, from dark to pale; of one or two the first is itself."""
    at = 0.0 if of == 1 else float(number) if of == 2 else 2.0 * number / (of - 1) - 1.0
    other, share = (0, -DARKEST * at) if at < 0 else (255, PALEST * at)
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(part + (other - part) * share):02x}" for part in parts)


def paler(colour: str, times: int) -> str:
    """A colour #rrggbb, mixed with white so many times."""
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(255 - (255 - part) * 0.55**times):02x}" for part in parts)


def _place(method: str) -> int:
    return _own.setdefault(method, len(_own))


def solid(look: Style) -> Style:
    """The style with a marker whose area can be seen: a square in place of a line."""
    return look._replace(marker="s", symbol="square") if look.marker in ("_", "|") else look
