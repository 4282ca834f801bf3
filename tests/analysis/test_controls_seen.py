"""What the networks of controls look at and hold: joined by run, means over seeds by hand."""

import numpy as np
import pytest
from invented import record
from test_gates import attention, probe

from dne_lab.analysis.controls_seen import seen
from dne_lab.measure.metrics import interval
from dne_lab.measure.record import Record


def controlled(seed: int, last: float) -> Record:
    return record("ia", seed, last, config={"options": {"entropy": 0.9}}, config_sha256=f"{seed}c".ljust(64, "0"))


def test_each_configuration_is_a_row_of_its_own_measured_runs() -> None:
    plain = [record("ia", seed, last) for seed, last in enumerate((60.0, 62.0, 67.0))]
    control = [controlled(0, 50.0)]
    looked = [attention(one.id, keys) for one, keys in zip([*plain[:2], *control], (4.0, 6.0, 12.0), strict=True)]
    probes = [probe("ia", run=plain[0].id, accuracy=60.0)]
    table = seen([*plain, *control, record("joint")], looked, probes).set_index("network")
    assert table.index.tolist() == ["IA", "IA, at 90% of the largest entropy"]
    first, second = (row for _, row in table.iterrows())
    assert first["seeds"] == 2 and second["seeds"] == 1  # the third was not measured
    assert first["LA"] == 60.0  # of the trainings that were measured
    assert (first["patches"], first["patches +-"]) == pytest.approx(interval([25.0, 37.5]))
    assert second["patches"] == pytest.approx(75.0) and np.isnan(second["patches +-"])
    assert np.isnan(first["first TAB"]) and np.isnan(first["second TAB"])  # IA has no task attention
    assert (first["probe: all"], first["probe: expert 1"]) == (60.0, 55.0) and np.isnan(second["probe: all"])


def test_nothing_measured_is_no_row() -> None:
    assert seen([record("ia")], [], []).empty
