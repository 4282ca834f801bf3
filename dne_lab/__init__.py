"""dne_lab: a laboratory for Dense Network Expansion for class-incremental learning (CVPR 2023).

import dne_lab as lab

stream = lab.stream("digits")
run = lab.start("dne", stream, preset="digits")
run.next_task()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dne_lab.core import shown as _shown

if TYPE_CHECKING:
    from dne_lab.analysis.ablation import ablate as ablate
    from dne_lab.analysis.attention_groups import attention_groups as attention_groups
    from dne_lab.analysis.connections import with_most_read as with_most_read
    from dne_lab.analysis.labelling import Labelling as Labelling
    from dne_lab.analysis.probe import probe as probe
    from dne_lab.analysis.read_outs import linear_probe as linear_probe
    from dne_lab.analysis.sweep import ablation_sweep as ablation_sweep
    from dne_lab.commands.api import open as open
    from dne_lab.commands.api import start as start
    from dne_lab.commands.api import train as train
    from dne_lab.commands.report import figure as figure
    from dne_lab.commands.track import track as track
    from dne_lab.core.errors import LabError as LabError
    from dne_lab.data.stream import stream as stream
    from dne_lab.measure.record import Record as Record
    from dne_lab.models.variants import Variant as Variant
    from dne_lab.widgets.explorer import explore as explore
    from dne_lab.widgets.runs import explore_runs as explore_runs

# Imported when first used, so that `dne-lab --help` answers before torch is loaded.
_WHERE = {
    "stream": "dne_lab.data.stream",
    "start": "dne_lab.commands.api",
    "train": "dne_lab.commands.api",
    "open": "dne_lab.commands.api",
    "Record": "dne_lab.measure.record",
    "ablate": "dne_lab.analysis.ablation",
    "with_most_read": "dne_lab.analysis.connections",
    "ablation_sweep": "dne_lab.analysis.sweep",
    "attention_groups": "dne_lab.analysis.attention_groups",
    "linear_probe": "dne_lab.analysis.read_outs",
    "Labelling": "dne_lab.analysis.labelling",
    "probe": "dne_lab.analysis.probe",
    "explore": "dne_lab.widgets.explorer",
    "explore_runs": "dne_lab.widgets.runs",
    "figure": "dne_lab.commands.report",
    "track": "dne_lab.commands.track",
    "Variant": "dne_lab.models.variants",
    "LabError": "dne_lab.core.errors",
}

# What `plot` and `watch` of a run or an analysis call, far above where it was made; imported when first used, too.
_shown.register("dne_lab.measure.record.Record", "plot", "dne_lab.plots.accuracy", "accuracy_matrix")
_shown.register(
    "dne_lab.training.run.Run", "watch", "dne_lab.widgets.runs", "watch", needs="ipywidgets, anywidget and matplotlib"
)
_shown.register("dne_lab.analysis.group_tables.AttentionGroups", "plot", "dne_lab.plots.groups", "drawn")
_shown.register("dne_lab.analysis.sweep.Sweep", "plot", "dne_lab.plots.contributions", "sweep_figure")

__all__ = [
    "LabError",
    "Labelling",
    "Record",
    "Variant",
    "ablate",
    "ablation_sweep",
    "attention_groups",
    "explore",
    "explore_runs",
    "figure",
    "linear_probe",
    "open",
    "probe",
    "start",
    "stream",
    "track",
    "train",
    "with_most_read",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'dne_lab' has no attribute {name!r}; it has {', '.join(sorted(_WHERE))}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
