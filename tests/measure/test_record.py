"""Records: what is written is read back, and anything else is refused with a message that says what to do."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from invented import record

from dne_lab.core.errors import LabError
from dne_lab.measure.record import Record, find

# DESIGN.md, Interfaces: others rely on these keys.
STABLE = {
    *("method", "preset", "dataset", "tasks", "class_order", "memory", "seed", "epochs", "accuracy", "seen_accuracy"),
    *("LA", "AA", "forgetting", "flops_literal", "flops_spent", "params", "device", "torch", "code_version"),
    *("config_sha256", "finished", "timing"),
}


def test_round_trip(tmp_path: Path) -> None:
    ours = record(last=71.25, other_predictions={"nme": {"seen_accuracy": [1.0], "LA": 1.0, "AA": 1.0}}, validation=0.2)
    ours.write(tmp_path / "record.json")
    text = (tmp_path / "record.json").read_bytes()
    assert Record.from_json(tmp_path / "record.json") == ours
    Record.from_json(tmp_path / "record.json").write(tmp_path / "record.json")
    assert (tmp_path / "record.json").read_bytes() == text
    tree = json.loads(text)
    assert set(tree) > STABLE
    assert {"budget", "policy", "stored", "scope"} == set(tree["memory"])
    assert isinstance(tree["flops_literal"], int)


def test_tuples_and_numpy_values_are_the_same_record() -> None:
    assert record(heads=(4, 1, 1, 1), last=np.float64(80.0), epochs=np.int64(30)) == record(last=80.0)


def test_only_timing_depends_on_the_clock() -> None:
    first, second = record(timing={"seconds": 1.0}), record(timing={"seconds": 2.0, "finished_at": "noon"})
    assert first != second
    assert first.without_timing() == second.without_timing()
    assert (first.seconds, record(timing={}).seconds) == (1.0, None)


def test_a_record_says_what_it_was_made_with_and_older_ones_stay_as_they_are(tmp_path: Path) -> None:
    ours = record(python="3.13.1", numpy="2.3.0", platform="Linux-6.1-x86_64, a processor")
    ours.write(tmp_path / "record.json")
    assert Record.from_json(tmp_path / "record.json") == ours
    assert {"python", "numpy", "platform"} <= ours.without_timing().keys()
    older = record()
    assert not {"python", "numpy", "platform"} & older.to_dict().keys()  # what was written before is written again
    with pytest.raises(LabError, match="python = 3: must be text"):
        record(python=3)
    with pytest.raises(LabError, match=r"timing\.command = 1: must be text"):
        record(timing={"command": 1})


def test_an_unfinished_run_has_a_record(tmp_path: Path) -> None:
    for done in (0, 2):
        record(done=done).write(tmp_path / "record.json")
        assert len(Record.from_json(tmp_path / "record.json").table()) == done


def test_table() -> None:
    table = record(last=80.0).table()
    assert list(table.columns) == ["task", "classes", "seen accuracy %", *(f"task {j} %" for j in range(1, 5))]
    assert table["classes"].tolist() == [4, 6, 8, 10]
    assert table["seen accuracy %"].tolist() == pytest.approx([98, 92, 86, 80])
    assert table["task 1 %"].tolist() == pytest.approx([98, 91, 84, 77])
    assert math.isnan(table["task 4 %"][2])
    assert table["task 4 %"][3] == 80.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"LA": 12.0}, "LA = 12.0, but the last seen accuracy is 80"),
        ({"LA": None}, "LA and AA are missing"),
        ({"accuracy": [[1.0]]}, "one entry for each finished task"),
        ({"accuracy": [[98.0], [1.0, 2.0], [1.0], [1.0]]}, "one entry for each finished task"),
        (
            {"seen_accuracy": [98.0, 92.0, 86.0, 800.0], "LA": 800.0},
            r"\[3\] = 800.0: must be at most 100\.",
        ),
        ({"seen_accuracy": [float("nan"), 92.0, 86.0, 80.0]}, r"seen_accuracy\[0\] = nan: must be finite"),
        ({"done": 2, "finished": True}, "accuracies of 2 tasks, but 4 tasks"),
        ({"tasks": []}, r"tasks = \[\]: must have at least 1 entries"),
        ({"config": {"data": True}}, r"config\.data = True: must be a dictionary"),
        ({"config": {"data": {"order_rule": [1]}}}, r"config\.data\.order_rule = \[1\]: must be text"),
        ({"config": {"learn": 3}}, r"config\.learn = 3: must be a dictionary"),
        ({"forked_from": {"run": "ia-digits-s0"}}, "forked_from lacks task or settings_sha256"),
    ],
)
def test_contradictions_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(LabError, match=message):
        record(**changes)


def damaged(kind: str) -> str:
    tree = record().to_dict()
    if kind == "version":
        tree["format"] = 99
    elif kind == "without":
        del tree["seed"]
    elif kind == "kind":
        tree["accuracy"] = 3
    elif kind == "value":
        tree["seen_accuracy"][0] = "98"
    elif kind == "foreign":
        tree = {"title": "my thesis"}
    text = json.dumps(tree)
    return {"cut": text[: len(text) // 2], "empty": "", "nan": text.replace("98", "NaN", 1), "list": "[1]"}.get(
        kind, text
    )


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("version", "another version .format 99 instead of 1"),
        ("without", "run folder of another version .without seed"),
        ("kind", "damaged"),
        ("value", "damaged.*seen_accuracy.0. = '98': must be a number"),
        ("foreign", "is not a record"),
        ("list", "is not a record"),
        ("cut", "damaged: not JSON"),
        ("empty", "damaged: not JSON"),
        ("nan", "NaN and Infinity are no numbers"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(damaged(kind))
    before = path.read_bytes()
    for read in (lambda: Record.from_json(path), lambda: find(tmp_path)):
        with pytest.raises(LabError, match=message) as error:
            read()
        assert str(path) in str(error.value)
    assert path.read_bytes() == before


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(LabError, match="not JSON"):
        Record.from_json(tmp_path / "record.json")


def test_find_walks_folders_and_passes_over_what_is_no_record(tmp_path: Path) -> None:
    for folder, seed in (("b/run", 1), ("a/run", 0)):
        (tmp_path / folder).mkdir(parents=True)
        record(seed=seed).write(tmp_path / folder / "record.json")
        (tmp_path / folder / "config.json").write_text(f'{{"method": "dne", "seed": {seed}}}')
    record("ia").write(tmp_path / "kept.json")
    assert [r.id for r in find(tmp_path)] == [record(seed=s).id for s in (0, 1)] + [record("ia").id]
    # the same record in two places, and another timing, are one run
    record(seed=1, timing={"seconds": 99.0}).write(tmp_path / "copy.json")
    assert len(find([tmp_path, tmp_path / "kept.json", str(tmp_path / "a")])) == 3


def test_find_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"no record in this folder. Train one first"):
        find(tmp_path)
    with pytest.raises(LabError, match="does not exist"):
        find([tmp_path / "nowhere"])
    with pytest.raises(LabError, match="no folder given"):
        find([])


def test_id_is_a_file_name() -> None:
    assert (
        record(preset="digits,paper-text", seed=3).id == f"dne-digits+paper-text-s3-{record(seed=3).config_sha256[:8]}"
    )


def test_fields_may_come_and_go(tmp_path: Path) -> None:
    """Records that are committed stay readable when a version adds a field with a default, or drops one."""
    tree = record().to_dict()
    for name in ("threads", "config"):
        del tree[name]
    path = tmp_path / "record.json"
    path.write_text(json.dumps(tree | {"novelty": 1}))
    assert Record.from_json(path).threads == 1


def test_a_copy_that_does_not_know_what_learning_took_is_the_same_run(tmp_path: Path) -> None:
    older, completed = record(), record(flops_training=10**12)
    for name, one in (("a", older), ("b", completed), ("c", older)):
        one.write(tmp_path / f"{name}.json")
    assert find(tmp_path) == [completed]
    other = record(flops_training=10**12, seed=1)
    other.write(tmp_path / "d.json")
    assert find(tmp_path) == [completed, other]


def test_files_of_an_editor_and_hidden_copies_are_passed_over(tmp_path: Path) -> None:
    record().write(tmp_path / "run" / "record.json")
    (tmp_path / "run" / "settings.json").write_text("{\n// of an editor\n}")
    (tmp_path / "notes.json").write_text("nothing of ours")
    for hidden in (".ipynb_checkpoints", ".trash"):
        record(seed=7).write(tmp_path / "run" / hidden / "record.json")
    assert find(tmp_path) == [record()]
    with pytest.raises(LabError, match=r"settings\.json is damaged: not JSON"):  # named by itself, it is meant
        find(tmp_path / "run" / "settings.json")
