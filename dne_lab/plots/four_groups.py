"""The four groups of keys that one query meets, on a real image (paper, figure 3)."""

import functools
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from dne_lab.analysis.hosts import find_network
from dne_lab.analysis.labelling import GROUPS
from dne_lab.analysis.views import head_names
from dne_lab.core.errors import LabError
from dne_lab.data.datasets import NAMED, photographs
from dne_lab.plots.attention_colours import group_colours, picture
from dne_lab.plots.attention_views import place_name
from dne_lab.plots.figure import Figure
from dne_lab.plots.static import edge
from dne_lab.plots.style import GROUP_COLOURS, GROUP_WORDS, INK

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from dne_lab.training.run import Run

MOST = 5  # copies of the image in a row
STEP = (1.12, 1.32)  # from one copy to the next, in sides of a copy
OWN = tuple(name for name, known in NAMED.items() if not known.files)  # come with the package, may be shown
TINT = (0.9, 0.9, 0.5, 0.5)  # how much of its colour covers a key: same patch strongly, different patches lightly


def figure_3(model: nn.Module, image: Tensor, patch: int, expert: int | None = None, head: int = 0) -> Figure:
    """The keys of one query, coloured by group: the image, then a copy of it for each head of experts 1 to ``expert``.

    The query is one patch as one head sees it. Independent attention (IA) compares it with the patches of its own head,
    the framed copy; spatial-task attention (STA) with those of every copy. The table counts the keys of each group and
    says what share of the attention each group would get if all keys got the same.

    Args:
        model: what is or holds an `ExpandableViT`; only its heads and its grid of patches are used.
        image: (C, H, W) uint8, of the size that the model takes.
        patch: the query's, from 0, row by row.
        expert: the query's, from 1; default: the newest.
        head: the query's, from 0 within its expert.

    Raises:
        LabError: no such patch, expert or head, or an image of another size.
    """
    import pandas as pd

    network = find_network(model)
    network.check(image[None])
    grid = network.grid
    count, expert = len(network.heads), len(network.heads) if expert is None else expert
    if not 1 <= expert <= count:
        raise LabError(f"expert {expert}: this network has experts 1 to {count}.")
    heads = network.heads[:expert]
    for name, plural, value, last in (
        ("head", "heads", head, heads[-1] - 1),
        ("patch", "patches", patch, grid[0] * grid[1] - 1),
    ):
        if not 0 <= value <= last:
            raise LabError(f"{name} {value}: a query of expert {expert} has {plural} 0 to {last}.")
    owner = [number for number, own in enumerate(heads, start=1) for _ in range(own)]
    within = [place for own in heads for place in range(own)]
    own = sum(heads[:-1]) + head
    groups = groups_of_keys(len(owner), own, grid[0] * grid[1], patch)
    rows = []
    for number, name in enumerate(GROUPS):
        ia, sta = int((groups[own] == number).sum()), int((groups == number).sum())
        rows.append({"group": name, "key": GROUP_WORDS[name], "keys, IA": ia, "keys, STA": sta})
        rows[-1] |= {"uniform %, IA": 100 * ia / groups[own].size, "uniform %, STA": 100 * sta / groups.size}
    names = head_names(tuple(owner), tuple(within))
    title = f"Four kinds of key for one query: {place_name(patch, grid)} of expert {expert}, head {head}\n"
    title += "IA compares it with the framed copy alone, STA with all of them"
    across, down = min(MOST, 1 + len(names)), -(-(1 + len(names)) // MOST)
    size = 1.3 * STEP[0] * across + 2.9, 1.3 * STEP[1] * down + 0.5
    draw = functools.partial(_draw, pixels=picture(image), groups=groups, names=names, own=own, grid=grid)
    return Figure("figure_3", title, pd.DataFrame(rows), [], picture=draw, size=size)


def groups_of_keys(heads: int, own: int, patches: int, patch: int) -> np.ndarray:
    """The group of every key as its place in `GROUPS`, (heads, patches); the query is ``patch`` of head ``own``."""
    return (np.arange(heads) != own)[:, None] + 2 * (np.arange(patches) != patch)[None]


def middle(grid: tuple[int, int]) -> int:
    """A patch in the middle."""
    return (grid[0] - 1) // 2 * grid[1] + (grid[1] - 1) // 2


def sample_image(run: "Run") -> Tensor:
    """A real image of the size that a run's model takes, and that may be shown: one of the run's own digits, else the
    flower of scikit-learn's sample photographs."""
    shape = run.model.shape
    if run.config.data.name in OWN:
        return run.stream.test_images(1).images[0]
    image = photographs(shape[1])[0]
    return image if shape[0] == 3 else image.float().mean(0, keepdim=True).round().to(image.dtype)


def _draw(
    axes: "Axes",
    table: "pd.DataFrame",
    pixels: np.ndarray,
    groups: np.ndarray,
    names: list[str],
    own: int,
    grid: tuple[int, int],
) -> None:
    high, wide = pixels.shape[0] // grid[0], pixels.shape[1] // grid[1]
    aspect = pixels.shape[0] / pixels.shape[1]
    query = divmod(int(groups[own].argmin()), grid[1])
    _copy(axes, 0, pixels, aspect, grid, "picture and query", query)
    grey = (pixels @ [0.299, 0.587, 0.114])[..., None]  # a colour of the picture would mix with that of the group
    for place, (row, name) in enumerate(zip(groups, names, strict=True)):
        group = row.reshape(grid).repeat(high, 0).repeat(wide, 1)
        tint = np.array(TINT)[group][..., None]
        shown = np.rint((1 - tint) * grey + tint * group_colours()[group]).astype(np.uint8)
        _copy(axes, 1 + place, shown, aspect, grid, name, query if place == own else None)
    count = len(names) + 1
    for _, group in table.iterrows():
        keys = f"{group['keys, STA']} key" + "s" * (group["keys, STA"] != 1)
        label = f"{group['group']}: {keys},\n{group['key']}"
        colour = GROUP_COLOURS[group["group"]]
        axes.plot([], [], "s", markersize=9, color=colour, label=label, **edge(colour, 1.0))
    axes.set_xlim(-0.04, STEP[0] * (min(MOST, count) - 1) + 1.04)
    axes.set_ylim(STEP[1] * aspect * ((count - 1) // MOST) + aspect + 0.04, -0.2)
    axes.set_axis_off()
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, labelspacing=1.0)


def _copy(
    axes: "Axes",
    place: int,
    pixels: np.ndarray,
    aspect: float,
    grid: tuple[int, int],
    name: str,
    query: tuple[int, int] | None,
) -> None:
    """One copy of the image; the query's patch is marked, and the head that it belongs to framed."""
    from matplotlib.patches import Rectangle

    x, y = STEP[0] * (place % MOST), STEP[1] * aspect * (place // MOST)
    axes.imshow(pixels, extent=(x, x + 1, y + aspect, y), interpolation="nearest")
    for line in range(1, grid[0]):
        axes.plot([x, x + 1], [y + aspect * line / grid[0]] * 2, color="white", linewidth=0.4)
    for line in range(1, grid[1]):
        axes.plot([x + line / grid[1]] * 2, [y, y + aspect], color="white", linewidth=0.4)
    axes.text(x + 0.5, y - 0.03, name, ha="center", va="bottom", fontsize=8)
    if query is None:
        return
    corner = (x + query[1] / grid[1], y + aspect * query[0] / grid[0])
    for colour, width in (("black", 2.6), ("white", 1.0)):
        axes.add_patch(Rectangle(corner, 1 / grid[1], aspect / grid[0], fill=False, edgecolor=colour, linewidth=width))
    if place:  # the picture itself is no head
        axes.add_patch(Rectangle((x, y), 1, aspect, fill=False, edgecolor=INK, linewidth=2.5))
