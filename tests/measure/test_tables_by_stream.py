"""Methods against streams: means over seeds, holes, joint models left out."""

import pandas as pd
from invented import record

from dne_lab.measure.tables import by_stream

STEPS = {5: (50, *[10] * 5), 10: (50, *[5] * 10)}


def test_a_row_a_method_and_a_column_a_stream() -> None:
    def run(method: str, seed: int, last: float, count: int) -> object:
        return record(method, seed, last, tasks=STEPS[count], heads=[3, *[1] * count])

    runs = [run("ia", 0, 60.0, 5), run("ia", 1, 62.0, 5), run("dne", 0, 70.0, 5), run("ia", 0, 40.0, 10)]
    frame = by_stream([*runs, record("joint", 0, 99.0)])
    assert frame.columns.tolist() == ["method", "50 + 10 x 5", "50 + 5 x 10"]
    assert frame["method"].tolist() == ["IA (k = 1)", "DNE (k = 1)"]
    assert frame.loc[0, ["50 + 10 x 5", "50 + 5 x 10"]].tolist() == [61.0, 40.0]
    assert frame["50 + 10 x 5"][1] == 70.0 and pd.isna(frame["50 + 5 x 10"][1])
    assert by_stream([]).empty
