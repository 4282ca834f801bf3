"""Which heads task attention reads: the mean of its weights in every layer, as matrices."""

from typing import TYPE_CHECKING, Any

import numpy as np

from dne_lab.analysis.maps import Maps
from dne_lab.errors import LabError
from dne_lab.models.attention import TASK1, TASK2
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import Drawing
from dne_lab.plots.matrices import grid, inches

if TYPE_CHECKING:
    import pandas as pd

BLOCKS = {TASK1: "first task attention block", TASK2: "second task attention block"}


def heads_read(maps: Maps) -> Figure:
    """The weight of each head that one expert reads, mean over images, query heads and patches, percent.

    A matrix for each of the two task attention blocks, a row for each layer.

    Args:
        maps: of `probe`, of kinds task1 and task2 or one of them, of one expert.

    Raises:
        LabError: no task attention, several experts.
    """
    import pandas as pd

    found = [m for m in maps if m.kind in BLOCKS]
    experts = {m.expert for m in found}
    if len(experts) != 1:
        asked = f"maps of experts {sorted(experts)}" if found else "no map of task attention"
        raise LabError(f"heads_read: {asked}; must be of one: probe(model, kind=('task1', 'task2'), expert=2).")
    axes = found[0].axes
    columns = [f"e{e} h{h}" for e, h in zip(axes.key_expert, axes.key_head, strict=True)]
    rows = [[m.kind, m.layer, *(100 * m.values.double().mean(dim=(0, 1, 2)).numpy())] for m in found]
    table = pd.DataFrame(rows, columns=["block", "layer", *columns]).sort_values(["block", "layer"], ignore_index=True)
    layers = sorted(table["layer"].unique())
    top = max(10.0, 10 * np.ceil(table[columns].to_numpy().max() / 10))

    def marks(table: "pd.DataFrame") -> Drawing:
        panels: list[tuple[str, Any, dict[tuple[int, int], str]]] = []
        for kind, mine in table.groupby("block"):
            values = mine.set_index("layer")[columns].reindex(layers).to_numpy(float)
            panels.append((BLOCKS[str(kind)], values, {}))
        titles = ("head that is read (expert, head)", "layer")
        return grid(panels, [str(n) for n in layers], columns, titles, "weight (%)", (0.0, top), across=2)

    (expert,) = experts
    heading = f"Whom expert {expert} reads: mean weight of each head, percent; uniform: {100 / len(columns):.1f}"
    size = inches(table["block"].nunique(), len(layers), len(columns), 2)
    return Figure("heads_read", heading, table, [], marks, size)
