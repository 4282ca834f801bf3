"""`dne-lab lab`: a real JupyterLab on the project, and the notebooks that a wheel brings along."""

import errno
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest
from shell import ROOT, environment

from dne_lab.commands import project
from dne_lab.core.errors import LabError

OWN = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "dne_lab", "notebooks", "figures")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of a wheel, without the checkout it was built from."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("made")
    for name in OWN:
        skip = shutil.ignore_patterns("__pycache__", "pictures", ".*")
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=skip)
        else:
            shutil.copy(ROOT / name, source / name)
    code = "import setuptools.build_meta as b, sys; b.build_wheel(sys.argv[1])"  # what pip wheel does
    subprocess.run([sys.executable, "-c", code, str(made)], cwd=source, check=True, capture_output=True)
    (wheel,) = made.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(made / "site")
    return made / "site"


def away(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of the installed package."""
    return subprocess.run(
        [sys.executable, "-m", "dne_lab", *words], cwd=folder, env={**environment(), "PYTHONPATH": str(installed)},
        text=True, capture_output=True, timeout=120,
    )  # fmt: skip


def test_a_wheel_brings_the_notebooks_and_what_they_read(installed: Path, tmp_path: Path) -> None:
    none = away(installed, tmp_path, "lab")
    assert none.returncode == 2 and "there are no notebooks in" in none.stderr and project.COPY in none.stderr
    done = away(installed, tmp_path, "notebooks", "mine")
    assert done.returncode == 0 and "Next: cd mine and dne-lab lab" in done.stdout, done.stderr
    copied = {str(file.relative_to(tmp_path / "mine")) for file in (tmp_path / "mine").rglob("*") if file.is_file()}
    assert copied == {str(file.relative_to(ROOT)) for file in project.material(ROOT)}
    for notebook in (tmp_path / "mine" / "notebooks").glob("*.ipynb"):
        for place in re.findall(r"\.\./figures/[\w./-]+", notebook.read_text(encoding="utf-8")):
            assert (notebook.parent / place.rstrip("./-")).exists(), (notebook.name, place)
    again = away(installed, tmp_path, "lab", "--copy-notebooks", "mine")
    assert again.returncode == 2 and "mine/notebooks exists and stays as it is" in again.stderr


def test_the_project_is_found(tmp_path: Path) -> None:
    assert project.find(ROOT) == project.find(ROOT / "notebooks") == project.find(tmp_path) == ROOT
    (tmp_path / project.FIRST).parent.mkdir()
    (tmp_path / project.FIRST).write_text("{}")
    assert project.find(tmp_path) == tmp_path.resolve()


@pytest.mark.parametrize(
    ("given", "there", "gone"),
    [
        ([], ["--ServerApp.ip=127.0.0.1", "--LabApp.default_url=/lab/tree/notebooks/00_quickstart.ipynb"], []),
        (["--port=9000", "--no-browser"], ["--port=9000", "--no-browser"], []),
        (["--ip=0.0.0.0"], ["--ip=0.0.0.0"], ["127.0.0.1"]),
        (["notebooks/05_fragmentation.ipynb"], ["notebooks/05_fragmentation.ipynb"], ["00_quickstart"]),
        (["--ServerApp.token=abc"], ["--IdentityProvider.token=abc"], ["ServerApp.token"]),
        (["--ServerApp.root_dir=/srv"], ["--ServerApp.root_dir=/srv"], [str(ROOT)]),
    ],
)
def test_arguments_are_passed_on(given: list[str], there: list[str], gone: list[str]) -> None:
    words = project.command(ROOT, given)
    assert words[1:3] == ["-m", "jupyterlab"] and {*there} <= {*words}
    assert not [word for word in words[3:] if any(text in word for text in gone)]


@pytest.mark.parametrize(("user", "allowed"), [(0, True), (1000, False)])
def test_only_root_is_allowed_root(user: int, allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user, raising=False)
    assert ("--allow-root" in project.command(ROOT, [])) == allowed
    assert project.command(ROOT, ["--allow-root"]).count("--allow-root") == 1


def test_how_to_reach_it_from_another_machine() -> None:
    assert "ssh -N -L 8888:127.0.0.1:8888 " in project.hint(ROOT, [])
    for given in (["--port=9001"], ["--port", "9001"], ["--no-browser", "--ServerApp.port=9001"]):
        assert "ssh -N -L 9001:127.0.0.1:9001 " in project.hint(ROOT, given)


def test_a_copy_needs_notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(project, "CHECKOUT", tmp_path)
    with pytest.raises(LabError, match="holds no notebooks"):
        project.copy(tmp_path / "mine")


def test_jupyterlab_starts_with_a_token_on_the_first_notebook(tmp_path: Path) -> None:
    pytest.importorskip("jupyterlab")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    homes = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    homes |= {f"JUPYTERLAB_{name}_DIR": str(tmp_path / name) for name in ("SETTINGS", "WORKSPACES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "dne_lab", "lab", f"--port={port}", "--no-browser"], cwd=ROOT,
        env=environment() | homes | {"HOME": str(tmp_path)}, text=True, stderr=subprocess.PIPE,
    )  # fmt: skip
    watch = threading.Timer(90, process.kill)
    watch.start()
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(rf"http://127\.0\.0\.1:{port}(/lab/tree/\S+)\?token=(\w{{20,}})", line):
                break
        else:
            raise AssertionError("".join(said))
        assert found[1] == "/lab/tree/notebooks/00_quickstart.ipynb" and "ssh -N -L" in said[0]
        contents = f"http://127.0.0.1:{port}/api/contents/{project.FIRST}?content=0"
        while True:  # the address is told a moment before anybody listens; the timer above ends this
            try:
                with urllib.request.urlopen(f"{contents}&token={found[2]}", timeout=30) as answer:
                    assert answer.status == 200 and b"00_quickstart.ipynb" in answer.read()
                break
            except urllib.error.HTTPError:
                raise
            except urllib.error.URLError:
                assert process.poll() is None, said
                time.sleep(0.1)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(contents, timeout=30)
    finally:
        watch.cancel()
        process.terminate()
        process.communicate(timeout=30)


def test_a_copy_that_fails_leaves_nothing_and_can_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own.txt").write_text("stays")
    copied, whole = [], shutil.copyfile

    def full(source: Path, target: Path) -> None:
        copied.append(target)
        whole(source, target)
        if len(copied) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(LabError, match=r"cannot copy the notebooks to .*mine: No space left on device"):
        project.copy(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["own.txt"]
    with pytest.raises(LabError, match="No space left"):
        copied.clear()
        project.copy(tmp_path / "new")
    assert not (tmp_path / "new").exists()
