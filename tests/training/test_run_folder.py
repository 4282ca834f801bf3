"""Checkpoints: one file, nothing unpickled, clear errors that leave the file as it is."""

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import tiny_runs as tiny
import torch

from dne_lab.core.errors import LabError
from dne_lab.training.run import Run
from dne_lab.training.run_folder import VERSION, load, save


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
