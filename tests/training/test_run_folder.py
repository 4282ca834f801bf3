"""Checkpoints: one file, nothing unpickled, clear errors that leave the file as it is."""

import io
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import tiny_runs as tiny
import torch
from shell import ROOT

from dne_lab.core.errors import LabError
from dne_lab.measure.record import Record, find
from dne_lab.training import archive
from dne_lab.training.run import Run
from dne_lab.training.run_folder import VERSION, load, read_output, read_predictions, record_in, save


def numpy_file(array: np.ndarray) -> bytes:
    packed = io.BytesIO()
    np.save(packed, array)
    return packed.getvalue()


def test_tensors_and_information_come_back(tmp_path: Path) -> None:
    weight = torch.randn(3, 4)
    tensors = {"a": weight, "view": weight.T, "same": weight, "count": torch.tensor(3), "empty": torch.zeros(0, 2)}
    info = {"cursor": [1, 2], "rate": 0.1 + 0.2, "text": "größer\n", "none": None}
    save(tmp_path / "x.safetensors", tensors, info)
    found, told = load(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert len(told.pop("sha256")) == 64 and told == {"version": VERSION, **info}
    first = (tmp_path / "x.safetensors").read_bytes()
    save(tmp_path / "x.safetensors", dict(reversed(tensors.items())), info)
    assert (tmp_path / "x.safetensors").read_bytes() == first


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("open('exploded', 'w')",)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    run = Run(tiny.settings(), tiny.stream(), folder, device="cpu", progress=False)
    run.next_task()
    return folder


@pytest.mark.parametrize("kind", ["empty", "half", "one byte", "text", "pickle", "foreign", "version", "header"])
def test_a_damaged_or_foreign_checkpoint_is_refused_and_untouched(
    kind: str, run_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    file = run_folder / "last.safetensors"
    good = file.read_bytes()
    foreign = safetensors.torch.save({"a": torch.zeros(2)})
    version = safetensors.torch.save({}, metadata={"dne-lab": '{"version": 99}'})
    header = safetensors.torch.save({}, metadata={"dne-lab": "{not JSON"})
    bad = {
        "empty": b"", "half": good[: len(good) // 2], "one byte": good[:-1], "text": b"hello" * 9,
        "pickle": pickle.dumps(Bomb()), "foreign": foreign, "version": version, "header": header,
    }[kind]  # fmt: skip
    try:
        file.write_bytes(bad)
        with pytest.raises(LabError, match=r"last\.safetensors") as error:
            Run(tiny.settings(), tiny.stream(), run_folder, device="cpu")
        assert "untouched" in str(error.value)
        assert file.read_bytes() == bad and not Path("exploded").exists()
    finally:
        file.write_bytes(good)


def test_a_checkpoint_that_does_not_fit_the_method_is_refused(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tiny.Tiny.__init__

    def other(self: tiny.Tiny, config: object, stream: object) -> None:
        original(self, config, stream)  # type: ignore[arg-type]
        self.register_buffer("new", torch.zeros(1))

    monkeypatch.setattr(tiny.Tiny, "__init__", other)
    with pytest.raises(LabError, match="does not fit this version of method tiny"):
        Run(tiny.settings(), tiny.stream(), run_folder, device="cpu")


def test_a_folder_that_is_no_runs(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no run folder"):
        Run.open(tmp_path)
    (tmp_path / "last.safetensors").write_bytes((run_folder / "last.safetensors").read_bytes())
    with pytest.raises(LabError, match="not known which run"):
        Run(tiny.settings(), tiny.stream(), tmp_path, device="cpu")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(LabError, match=r"config\.json is damaged"):
        Run(tiny.settings(), tiny.stream(), tmp_path, device="cpu")
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match="is a file"):
        Run(tiny.settings(), tiny.stream(), tmp_path / "file", device="cpu")


def test_the_record_of_another_run_is_named_wherever_it_is_read(tmp_path: Path) -> None:
    """A whole and sealed one, copied by hand: of another seed, or of another program's run altogether."""
    for name, seed in (("run", 0), ("other", 1)):
        Run(tiny.settings(seed=seed), tiny.stream(), tmp_path / name, device="cpu", progress=False).train()
    folder = tmp_path / "run"
    mine = (folder / "record.json").read_bytes()
    shutil.copy(tmp_path / "other" / "record.json", folder / "record.json")
    message = r"record\.json is the record of another run than config\.json beside it: .*seed \(1 there, 0 here\)"
    for read in (
        lambda: Run.open(folder, tiny.stream()), lambda: record_in(folder), lambda: find(folder),
        lambda: archive.export(folder, tmp_path / "x.zip"),
    ):  # fmt: skip
        with pytest.raises(LabError, match=message):
            read()
    shutil.copy(ROOT / "figures" / "records" / "digits100" / "dne-s0.json", folder / "record.json")
    with pytest.raises(LabError, match=r"another run than .*data\.tasks|method"):
        record_in(folder)
    (folder / "record.json").write_bytes(mine)
    assert find(folder)[0].seed == 0


def header(shape: str) -> bytes:
    """An .npy file of 24 bytes of numbers that says that it has another shape."""
    text = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text + bytes(24)


@pytest.mark.parametrize(
    "content",
    [
        header("(10000000000000,)"), header("(99999999999999999999,)"), header("(" * 5000), header("(-1,)"), b"",
        *(numpy_file(array) for array in (np.zeros(3), np.zeros((3, 2), int), np.array(3), np.zeros(2, "V8"))),
    ],
    ids=["terabytes", "more than there is", "nested", "negative", "empty", "fractions", "two axes", "no axis", "bytes"],
)  # fmt: skip
def test_predictions_that_no_run_writes_are_damaged(run_folder: Path, tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    with zipfile.ZipFile(folder / "predictions.npz", "w") as packed:
        packed.writestr("task_01/labels.npy", content)
    with pytest.raises(LabError, match=r"predictions\.npz is damaged"):
        read_predictions(folder / "predictions.npz", Record.from_json(folder / "record.json"))


@pytest.mark.parametrize("name", ["predictions.npz", "curves.csv"])
def test_a_file_far_too_large_is_not_read(run_folder: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    with (folder / name).open("r+b") as file:
        file.truncate(4 * 2**30)  # takes no room on the disk
    with pytest.raises(LabError, match=r"has 4,294,967,296 bytes: not what a run writes"):
        read_output(folder / name, Record.from_json(folder / "record.json"))


def test_a_file_that_may_not_be_read_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: object, **named: object) -> None:
        raise FileNotFoundError("No such file or directory")  # what safetensors says of it

    save(tmp_path / "x.safetensors", {}, {})
    monkeypatch.setattr(safetensors, "safe_open", refuse)
    with pytest.raises(LabError, match=r"x\.safetensors cannot be read: permission denied\. Make it readable"):
        load(tmp_path / "x.safetensors")
