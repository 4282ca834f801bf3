"""Other programs' results: logs invented here in the form that PyCIL and Mammoth write, as records beside ours."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from invented import record
from shell import Here

from dne_lab.core.errors import LabError
from dne_lab.measure import tables
from dne_lab.measure.comparison import groups
from dne_lab.measure.imported import read
from dne_lab.measure.record import Record, find

ORDER = [3, 1, 0, 2, 5, 4, 7, 6, 9, 8]
CNN = [[90.0], [70.0, 50.0], [60.0, 40.0, 80.0]]  # on the classes of tasks of 4, 3 and 3


def seen(rows: list[list[float]], sizes: tuple[int, ...] = (4, 3, 3)) -> list[float]:
    """The accuracy over all classes seen, rounded as PyCIL does."""
    return [round(sum(a * n for a, n in zip(row, sizes, strict=False)) / sum(sizes[: len(row)]), 2) for row in rows]


def pycil(
    model: str = "der", seed: int = 7, rows: list[list[float]] = CNN, nme: float | None = None, numpy: bool = False
) -> str:
    """A log of invented results. ``nme``: how many points the nearest mean is better; ``numpy``: numbers as NumPy 2
    writes them."""
    told = {"prefix": "mine", "dataset": "cifar10", "memory_size": 200, "fixed_memory": False, "init_cls": 4}
    told |= {"increment": 3, "model_name": model, "convnet_type": "resnet32", "device": "[device(type='cpu')]"}
    lines = [f"[trainer.py] => {name}: {value}" for name, value in (told | {"seed": seed}).items()]
    lines += [f"[data_manager.py] => {ORDER}", "[trainer.py] => All params: 12"]
    for task, row in enumerate(rows):
        lines.append(f"[{model}.py] => Task {task}, Epoch 170/170 => Loss 0.100, Train_accy 99.00")
        for name, more in (("CNN", 0.0), ("NME", nme)):
            if more is None:
                continue
            curve = [round(value + more, 2) for value in seen(rows)[: task + 1]]
            groups_of = dict(zip(("00-03", "04-06", "07-09"), [value + more for value in row], strict=False))
            told_now: Any = {"total": curve[-1], **groups_of, "old": 0, "new": row[-1]}
            text = str({k: f"np.float64({v})" for k, v in told_now.items()}).replace("'np", "np").replace(")'", ")")
            lines.append(f"[trainer.py] => {name}: {text if numpy else told_now}")
            lines += [f"[trainer.py] => {name} top1 curve: {curve}", f"[trainer.py] => {name} top5 curve: {curve}"]
    return "\n".join(f"2031-01-02 03:04:05,678 {line}" for line in lines) + "\n"


def written(folder: Path, text: str, name: str = "mine.log") -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize("numpy", [False, True])
def test_a_pycil_log_is_a_record_that_says_so(numpy: bool, tmp_path: Path) -> None:
    (one,) = read("pycil", written(tmp_path, pycil(numpy=numpy)))
    assert (one.method, one.dataset, one.seed, one.epochs, one.tasks) == ("der", "cifar10", 7, 170, [4, 3, 3])
    assert one.class_order == ORDER and one.network == {"name": "resnet32"} and one.finished
    assert one.memory == {"budget": 200, "policy": "shared"}
    assert one.accuracy == CNN and one.seen_accuracy == seen(CNN)
    assert one.forgetting == pytest.approx((30 + 10) / 2)
    assert (one.imported["from"], one.imported["file"], one.imported["prediction"]) == ("PyCIL", "mine.log", "cnn")
    assert not one.device and one.flops_literal is None and one.seconds is None
    one.write(tmp_path / "one.json")
    assert find(tmp_path / "one.json") == [one]


def test_icarl_is_the_nearest_mean_unless_the_classifier_is_asked_for(tmp_path: Path) -> None:
    log = written(tmp_path, pycil("icarl", nme=4.0))
    (nme,), (cnn,) = read("pycil", log), read("pycil", log, prediction="cnn")
    assert pytest.approx((cnn.LA or 0) + 4) == nme.LA and nme.other_predictions["cnn"]["LA"] == cnn.LA
    assert nme.accuracy[2] == [64.0, 44.0, 84.0] and cnn.imported["prediction"] == "cnn"


def test_several_trainings_of_a_log_are_several_records(tmp_path: Path) -> None:
    appended = pycil(seed=1) + pycil(seed=2, rows=CNN[:2])  # the second one has not finished
    first, second = read("pycil", written(tmp_path, appended))
    assert (first.seed, first.finished, second.seed, second.finished) == (1, True, 2, False)
    assert second.tasks == [4, 3, 3] and second.seen_accuracy == seen(CNN)[:2]
    assert first.settings_sha256 == second.settings_sha256 and first.config_sha256 != second.config_sha256
    again = "".join(line for line in pycil().splitlines(True) if "top" in line or "CNN:" in line)
    bare = read("pycil", written(tmp_path, pycil() + again))  # one after the other without settings in between
    assert [r.seen_accuracy for r in bare] == [seen(CNN)] * 2 and [r.accuracy for r in bare] == [CNN] * 2


def test_ranges_across_tasks_give_no_matrix(tmp_path: Path) -> None:
    text = pycil().replace("'04-06'", "'02-06'")
    (one,) = read("pycil", written(tmp_path, text))
    assert one.accuracy == [] and one.forgetting is None and len(one.table()) == 3
    (finer,) = read("pycil", written(tmp_path, pycil().replace("'00-03': 60.0", "'00-01': 70.0, '02-03': 50.0")))
    assert finer.accuracy == CNN


HEADER = "task1,task2,task3,forward_transfer,backward_transfer,forgetting,dataset,model,buffer_size,seed,n_epochs,notes"


def test_mammoths_table_and_log(tmp_path: Path) -> None:
    table = f"{HEADER}\n80.5,60,50.25,,,-30,seq-mine,er,500,1,50,a\n81,61,51,,,-30,seq-mine,er,500,2,50,b\n"
    first, second = read("mammoth", written(tmp_path, table, "mean_accs.csv"), tasks=(2, 2, 2))
    assert first.seen_accuracy == [80.5, 60.0, 50.25] and first.accuracy == [] and first.dataset == "mine"
    assert first.memory == {"budget": 500, "policy": "reservoir"} and (first.seed, first.epochs) == (1, 50)
    assert first.settings_sha256 == second.settings_sha256  # notes are no settings
    values = {"dataset": "seq-cifar10", "model": "der", "seed": 3, "device": "x", "accmean_task1": 90.0}
    values |= {"accmean_task2": 60.0, "accuracy_1_task1": 90.0, "accuracy_1_task2": 45.0, "accuracy_2_task2": 75.0}
    line = str(values).replace("'x'", "device(type='cuda', index=0)").replace("90.0", "np.float64(90.0)")
    (logged,) = read("mammoth", written(tmp_path, line + "\n", "logs.pyd"))
    assert logged.tasks == [5, 5] and logged.accuracy == [[90.0], [45.0, 75.0]] and logged.forgetting == 45.0
    assert logged.imported["from"] == "Mammoth" and logged.class_order == list(range(10))


UNSPLIT = pycil().replace("init_cls: 4", "init_cls: ?").replace("'00-03'", "'x'")


@pytest.mark.parametrize(
    ("program", "name", "text", "said"),
    [
        ("pycil", "a.log", "nothing here\n", r"a.log has no result of PyCIL: lines such as `CNN top1 curve"),
        ("mammoth", "a.csv", "name,value\nx,1\n", r"no result of Mammoth: columns task1, task2"),
        ("mammoth", "task-il/a.csv", "task1\n50\n", "is of task-il: only class-il, where the task is not known"),
        ("mammoth", "a.csv", "task1,task2,task3,dataset\n9,8,7,seq-cifar10\n", "row 1: 3 tasks of seq-cifar10"),
        ("mammoth", "a.csv", "task1,dataset\n900,seq-cifar10\n", "accuracy 900.0: must be a percentage, from 0 to 100"),
        ("pycil", "a.log", UNSPLIT, "give --tasks 50,10,10"),
        ("pycil", "a.log", pycil().replace("'total': 60.0", "'total': 12.0"), "contradict each other"),
        ("pycil", "a.log", "=> CNN: " + "[" * 5000 + "\n=> CNN top1 curve: " + "[" * 5000, "no result of PyCIL"),
        ("pycil", "a.log", "=> CNN top1 curve: [__import__('os').getcwd()]\n", "no result of PyCIL"),
        ("pycl", "a.log", "", "unknown program 'pycl'. Did you mean pycil"),
    ],
)  # fmt: skip
def test_what_is_no_result_is_said(program: str, name: str, text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(LabError, match=said):
        read(program, written(tmp_path, text, name))


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"\x80\x02\xff\xfe")
    for path, said in (
        (tmp_path / "model.pt", "is no text in UTF-8"),
        (tmp_path / "none.log", "does not exist"),
        (tmp_path, "is a folder: name a log"),
    ):
        with pytest.raises(LabError, match=said):
            read("pycil", path)
    with pytest.raises(LabError, match="has no NME curve"):
        read("pycil", written(tmp_path, pycil()), prediction="nme")
    with pytest.raises(LabError, match="is for PyCIL, which has two"):
        read("mammoth", tmp_path / "none.csv", prediction="nme")
    with pytest.raises(LabError, match="one entry for each finished task"):
        record(accuracy=[])  # a run of ours has its matrix


def test_imported_records_stand_beside_ours_in_tables_and_are_never_averaged_with_them(
    here: Here, tmp_path: Path
) -> None:
    ours = [record("der", seed, 70.0 + seed, tasks=(4, 3, 3), dataset="cifar10") for seed in (7, 8)]
    for number, one in enumerate(ours):
        one.write(tmp_path / "ours" / f"{number}.json")
    log = written(tmp_path, pycil(seed=7) + pycil(seed=8))
    done = here("import", "pycil", log, "--out", "theirs")
    assert done.code == 0 and "DER (PyCIL)" in done.out and "2 records in theirs" in done.err
    files = sorted((tmp_path / "theirs").iterdir())
    assert (
        here("import", "pycil", log, "--out", "theirs").code == 0 and sorted((tmp_path / "theirs").iterdir()) == files
    )
    (tmp_path / "mean_accs.csv").write_text(f"{HEADER}\n80,60,50,,,,seq-cifar10,der,0,1,5,\n")
    assert here("import", "mammoth", "mean_accs.csv", "--out", "theirs", "--tasks", "4,3,3").code == 0
    found = groups(find([tmp_path / "ours", tmp_path / "theirs"]))
    counts = {group.label: len(group.records) for group in found}
    assert list(counts.items()) == [("DER", 2), ("der (Mammoth)", 1), ("DER (PyCIL)", 2)]
    told = here("report", "ours", "theirs", "--out", "report")
    assert told.code == 0, told.err
    assert "Imported, not trained here: der (Mammoth), DER (PyCIL)." in told.out
    rows = [line for line in told.out.splitlines() if line.startswith(("DER", "der"))]
    assert rows[0].startswith("DER  ") and "71.50" not in rows[2] and "60.00" in rows[2]
    alone = here("report", "theirs", "--out", "alone")
    assert alone.code == 0 and {file.name for file in (tmp_path / "alone").iterdir()} == {"summary.csv"}
    assert "was imported: another program trained it" in here("run", "--config", files[0], "--dry-run").err
    assert here("import", "pycil", log, log).err.count("given twice") == 1
    assert json.loads(here("import", "pycil", log, "--json").out)[0]["imported"]["from"] == "PyCIL"
    assert Record.from_json(files[0]).imported["from"] == "PyCIL"


def test_a_training_that_has_not_ended_is_named(here: Here, tmp_path: Path) -> None:
    done = here("import", "pycil", written(tmp_path, pycil(rows=CNN[:2])))
    assert done.code == 0 and "1 record in" in done.err and "der s7: 2 of 3 tasks" in done.err and "DER" not in done.out


def test_epochs_that_a_file_does_not_say_are_blank(tmp_path: Path) -> None:
    (tmp_path / "mean_accs.csv").write_text("accmean_task1,accmean_task2,dataset,model,seed\n80,60,seq-cifar10,der,0\n")
    (theirs,) = read("mammoth", tmp_path / "mean_accs.csv", (5, 5))
    text = tables.to_text(tables.summary([theirs, record("dne", 0, 70.0, tasks=(5, 5), dataset="cifar10")]))
    column = [line.split("60.00")[0].split() for line in text.splitlines() if "(Mammoth)" in line]
    assert column == [["der", "(Mammoth)"]] and "1.00" not in text  # epochs of the other stay whole


def with_row(change: dict[Any, Any]) -> str:
    """A log whose last accuracies of groups are changed."""
    lines = pycil().splitlines(True)
    last = max(n for n, line in enumerate(lines) if "CNN: {" in line)
    row = {"total": 60.0, "00-03": 60.0, "04-06": 40.0, "07-09": 80.0, "old": 0, "new": 80.0}
    lines[last] = f"=> CNN: {row | change}\n"
    return "".join(lines)


def settings(first: int, step: int) -> str:
    """A log with these numbers of classes, and without an order, by which they would be counted."""
    text = pycil().replace(str(ORDER), "")
    return text.replace("init_cls: 4", f"init_cls: {first}").replace("increment: 3", f"increment: {step}")


NO_RANGE = UNSPLIT.replace("'x'", "'{}'").replace("'04-06'", "'a'").replace("'07-09'", "'b'")
ODD = {
    "total is None": (with_row({"total": None}), "accuracy None: must be a percentage"),
    "a list": (with_row({"00-03": [1, 2]}), r"accuracy \[1, 2\]: must be a percentage"),
    "a dictionary": (with_row({"new": {}}), r"accuracy {}: must be a percentage"),
    "true": (with_row({"new": True}), "accuracy True: must be a percentage"),
    "complex": (with_row({"total": 1j}), "accuracy 1j: must be a percentage"),
    "no float": (with_row({"total": 10**400}), r"accuracy 1000.*\.\.\.: must be a percentage"),
    "a number as key": (with_row({5: 1.0}), "accuracies of 5: must be of classes"),
    "bytes as key": (with_row({b"00-03": 1.0}), "accuracies of b'00-03': must be of classes"),
    "a curve of no floats": (f"=> CNN top1 curve: [{10**400}]\n", "must be a percentage"),
    "a curve of None": ("=> CNN top1 curve: [90.0, None]\n", "accuracy None"),
    "a range of 5,000 digits": (NO_RANGE.replace("{}", "00-" + "9" * 5000), "give --tasks 50,10,10"),
    "a range of 11 digits": (NO_RANGE.replace("{}", "00-99999999999"), "give --tasks 50,10,10"),
    "many classes first": (settings(10**12, 3), "up to 1,000,000 in 10,000 are taken"),
    "many classes each": (settings(4, 10**12), "up to 1,000,000 in 10,000 are taken"),
    "many of all digits": (settings(10**300, 10**300), "up to 1,000,000 in 10,000 are taken"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_values_that_no_log_has_are_named(kind: str, tmp_path: Path) -> None:
    text, said = ODD[kind]
    with pytest.raises(LabError, match=said):
        read("pycil", written(tmp_path, text))


def of_ranges(*names: str) -> str:
    """A log of one task a range, which says nothing else of the classes."""
    lines = []
    for task in range(1, len(names) + 1):
        row = {"total": 50.0} | dict.fromkeys(names[:task], 50.0)
        lines += [f"=> CNN: {row}\n", f"=> CNN top1 curve: {[50.0] * task}\n"]
    return "".join(lines)


def test_ranges_are_classes_as_a_stream_may_have_them(tmp_path: Path) -> None:
    (one,) = read("pycil", written(tmp_path, of_ranges("00-03", "04-06")))
    assert one.tasks == [4, 3]
    for names, said in ((("00-9999999",), "has 1 tasks of"), (("05-02",), "each of at least one")):
        with pytest.raises(LabError, match=said):
            read("pycil", written(tmp_path, of_ranges(*names)))
    many = of_ranges(*(f"{n}-{n}" for n in range(3))).replace("2-2", "2-900000").replace("1-1", "1-900000")
    with pytest.raises(LabError, match="up to 1,000,000 classes"):
        read("pycil", written(tmp_path, many))


def test_tasks_without_an_end_in_mammoths_table(tmp_path: Path) -> None:
    """Nine thousand columns: a matrix of them would have forty million entries, and one is told."""
    names = [f"task{n}" for n in range(1, 9001)]
    table = ",".join([*names, "accuracy_1_task1"]) + "\n" + ",".join(["50"] * 9001) + "\n"
    (one,) = read("mammoth", written(tmp_path, table, "a.csv"), tasks=[1] * 9000)
    assert one.accuracy == [] and len(one.tasks) == 9000


def test_a_list_that_takes_long_to_read_is_passed_over(tmp_path: Path) -> None:
    order = "=> [" + "[" * 40 + "1" * 3_000_000 + "]\n"
    (one,) = read("pycil", written(tmp_path, order + pycil()))
    assert one.class_order == ORDER


def test_where_records_go_is_shown_without_what_steers_a_terminal(here: Here, tmp_path: Path) -> None:
    log = written(tmp_path, pycil())
    done = here("import", "pycil", log, "--out", "o\x1b[35m")
    assert done.code == 0 and "record in o\\x1b[35m" in done.err and "\x1b" not in done.out + done.err
    assert (tmp_path / "o\x1b[35m").is_dir()


def test_a_log_that_takes_long_to_read_is_refused(tmp_path: Path) -> None:
    log = written(tmp_path, pycil())
    os.truncate(log, 16_000_001)
    with pytest.raises(LabError, match=r"mine\.log has 16,000,001 bytes; logs of up to 16,000,000 are read"):
        read("pycil", log)
