"""The same methods on several streams: one row a method, one column a stream."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dne_lab.measure.groups import groups, tasks_text
from dne_lab.measure.metrics import interval
from dne_lab.measure.record import Record

if TYPE_CHECKING:
    import pandas as pd


def by_stream(records: Iterable[Record]) -> "pd.DataFrame":
    """LA in percent, mean over seeds, of each method (row) on each stream (column, from large steps to small).

    Joint models, which know no tasks, are left out; empty where a method has no finished run of that stream.
    """
    import pandas as pd

    streams: dict[str, list[Record]] = {}
    for record in sorted((r for r in records if not r.joint), key=lambda r: len(r.tasks)):
        streams.setdefault(tasks_text(record.tasks), []).append(record)
    columns = {
        stream: {group.label: interval(list(group.last_by_seed().values()))[0] for group in groups(members)}
        for stream, members in streams.items()
    }
    order = {label: None for found in sorted(columns.values(), key=len, reverse=True) for label in found}
    frame = pd.DataFrame({stream: pd.Series(found, dtype=float) for stream, found in columns.items()})
    return frame.reindex(list(order)).rename_axis("method").reset_index()
