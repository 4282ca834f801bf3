"""Data sets of the Hub by name, fetched by the real library from a server on this machine that answers as the Hub does.

In processes of their own: the library reads where its server and cache are when it is imported.
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import stand_in_hub
from PIL import Image
from shell import ROOT, sets

from dne_lab.core.errors import LabError
from dne_lab.data import hub_dataset
from dne_lab.data.hub_dataset import Name, named

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)


def parquet(numbers: range, **columns: Any) -> bytes:
    """A file of the Hub with images and the columns."""
    images = [Image.fromarray(PIXELS[number]) for number in numbers]
    kinds = {name: feature for name, (feature, _) in columns.items()}
    values = {name: [fill(number) for number in numbers] for name, (_, fill) in columns.items()}
    made = datasets.Dataset.from_dict(
        {"img": images, **values}, features=datasets.Features({"img": datasets.Image(), **kinds})
    )
    packed = io.BytesIO()
    made.to_parquet(packed)
    return packed.getvalue()


def files(**columns: Any) -> dict[str, bytes]:
    return {
        "data/train-0.parquet": parquet(range(40), **columns),
        "data/test-0.parquet": parquet(range(40, 60), **columns),
    }


@pytest.fixture(scope="module")
def hub() -> Iterator[stand_in_hub.StandIn]:
    fine = (datasets.ClassLabel(names=[f"n{number}" for number in range(10)]), lambda number: number % 10)
    coarse = (datasets.ClassLabel(names=["even", "odd"]), lambda number: number % 2)
    before = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    with stand_in_hub.served() as found:
        found.repositories |= {
            "me/toy": files(label=fine), "me/two": files(fine=fine, coarse=coarse),
            "me/numbers": files(label=(datasets.Value("int32"), lambda number: number % 4)),
            "me/words": files(text=(datasets.Value("string"), str)),
            "me/alone": {"data/train-0.parquet": parquet(range(40), label=fine)},
        }  # fmt: skip
        yield found
    if before:
        datasets.enable_progress_bars()


def beside(hub: stand_in_hub.StandIn, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A program with a cache of its own in ``folder``, which knows no other server."""
    variables = {
        "HF_HOME": str(folder / "cache"), "HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True
    )


LOOK = """
import json, sys
import dne_lab as lab
found = {}
for name in json.loads(sys.argv[1]):
    try:
        source = lab.stream(name, base=1, step=1, download=sys.argv[2] == "download").source
        pixels = source.images("test", __import__("torch").tensor([3])).flatten().tolist()
        found[name] = [list(source.classes), list(source.shape), source.labels("test").tolist(), pixels]
    except lab.LabError as error:
        found[name] = str(error)
print(json.dumps(found))
"""


COMMANDS = """
import contextlib, io, json, sys
from dne_lab.commands import cli
found = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["dne-lab", *words]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            cli.main()
        except SystemExit as end:
            found.append([end.code or 0, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""


def test_a_run_fetches_once_and_then_needs_no_server(hub: stand_in_hub.StandIn, tmp_path: Path) -> None:
    run = ["run", "dne", *sets(data__name="hf:me/toy", network__patch=4), "--device", "cpu", "--json"]
    refused, trained = commands(beside(hub, tmp_path, "-c", COMMANDS, json.dumps([run, [*run, "--download"]])))
    assert refused[0] == 2 and "hf:me/toy is not in the cache of the library `datasets` here" in refused[2]
    assert "--download" in refused[2] and trained[0] == 0, trained[2]
    (record,) = json.loads(trained[1])
    assert record["dataset"] == "hf:me/toy" and any("/datasets/me/toy/resolve/" in asked for asked in hub.asked)
    hub.asked.clear()
    (folder,) = (tmp_path / "runs").iterdir()
    again, told = commands(beside(hub, tmp_path, "-c", COMMANDS, json.dumps([run, ["report", str(folder)]])))
    assert again[0] == 0 and json.loads(again[1]) == [record]
    assert told[0] == 0 and "hf:me/toy" in told[1] and not hub.asked


def commands(done: subprocess.CompletedProcess[str]) -> list[Any]:
    """How each ended: status, output, errors."""
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_columns_splits_and_names_are_found_or_asked_for(hub: stand_in_hub.StandIn, tmp_path: Path) -> None:
    names = [
        "hf:me/two#coarse", "hf:me/two", "hf:me/two#other", "hf:me/numbers", "hf:me/words", "hf:me/alone", "hf:me/none",
        "hf:me/words#text",
    ]  # fmt: skip
    done = beside(hub, tmp_path, "-c", LOOK, json.dumps(names), "download")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    labels = [number % 2 for number in range(40, 60)]
    pixels = PIXELS[43].transpose(2, 0, 1).flatten().tolist()
    assert found["hf:me/two#coarse"] == [["even", "odd"], [3, 8, 8], labels, pixels]
    assert found["hf:me/numbers"][0] == ["0", "1", "2", "3"]
    for name, said in {
        "hf:me/two": "several columns of type ClassLabel: name one of fine, coarse, as in hf:me/two#fine",
        "hf:me/two#other": "there is no column 'other'. It has img, fine, coarse",
        "hf:me/words": "no column of type ClassLabel: it has img, text",
        "hf:me/words#text": "the train labels in 'text' are",
        "hf:me/alone": "no split called test or validation or val or valid: it has train",
        "hf:me/none": "hf:me/none cannot be read (Dataset 'me/none' doesn't exist on the Hub",
    }.items():
        assert said in found[name], found[name]


@pytest.mark.parametrize(
    "wrong", ["hf:", "hf:a/b/c", "hf:../x", "hf:a--b", "hf:/etc", "hf:a:b:c", "hf:a#b/c", "hf:a b"]
)
def test_what_is_no_name_is_refused(wrong: str) -> None:
    with pytest.raises(LabError, match="is no data set of the Hub: write hf:USER/NAME"):
        named(wrong)


def test_names_and_their_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert named("hf:mnist") == Name("mnist", None, None)
    assert named("hf:uoft-cs/cifar100:plain#fine_label") == Name("uoft-cs/cifar100", "plain", "fine_label")
    monkeypatch.chdir(tmp_path)
    Path("mnist").mkdir()  # which the library would read in its place
    with pytest.raises(LabError, match="there is a file or folder mnist here"):
        hub_dataset.HubSource("hf:mnist")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(LabError, match=r"needs datasets, which is not installed here: pip install 'dne-lab\[hub\]'"):
        hub_dataset.HubSource("hf:other")
