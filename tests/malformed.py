"""Malformed files and words by the thousand: what is made of right ones by changing, cutting, swapping and blowing up.

Each is read as a command or a notebook would read it, and has to end in a `LabError` or a result, within ten seconds
and two gigabytes, with all files as they were. `python tests/malformed.py 20000 [SEED]` prints a table.
"""

import collections
import contextlib
import copy
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shell import snapshot

import dne_lab as lab
from dne_lab.analysis import run_views
from dne_lab.analysis.ablation_study import AblationRecord
from dne_lab.analysis.decomposition import Decomposition
from dne_lab.commands import arguments, report
from dne_lab.core.config import Config, field_names
from dne_lab.core.errors import LabError
from dne_lab.data.stream import sizes
from dne_lab.measure import cost_records
from dne_lab.plots import attention, contributions
from dne_lab.plots.cost_figures import cost_growth, read_bench, step_time
from dne_lab.training import archive, run_list

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "figures" / "records"
SECONDS, MEGABYTES = 10, 2000  # that one input may take
SMALL = {"network__heads": (2, 1), "network__depth": 2, "network__head_width": 4, "network__patch": 4}
SMALL |= {"learn__epochs": 1, "tune__epochs": 1, "memory__budget": 20, "data__tasks": "8,2", "learn__batch": 256}

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3.5, -0.0, 1e300, 10**18, -(10**18), 10**400, float("nan"), float("inf"), "", "x",
    "1", "nan", "none", "../../x", "\x00", "\u202e", "é" * 300, "a" * 5000, [], {}, [[]], [None], {"a": 1}, [1, 2, 3],
    ["x"], [[1.0], [1.0, 2.0]], {"": None}, "[", "12,1", "0-99999999999", "1e999", 2**63, 0.1, 101, "\ud7ff",
]  # fmt: skip


class TooSlowError(Exception):
    """An input took longer than `SECONDS`."""


# Changes --------------------------------------------------------------------------------------------------------------


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something lies within nested dictionaries and lists."""
    yield path
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inside:
        yield from places(value, (*path, key))


def changed(tree: Any, draw: random.Random) -> Any:
    """A copy of a tree with one to three entries swapped, left out, doubled or added."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        # a place level by level, so that the few top fields are met as often as the many numbers of a table
        node, key = None, None
        at = tree
        while isinstance(at, dict | list) and at and (node is None or draw.random() < 0.6):
            node, key = at, draw.choice(list(at) if isinstance(at, dict) else range(len(at)))
            at = node[key]
        if node is None:
            return draw.choice(ODD)
        what = draw.choice(["swap", "swap", "swap", "drop", "add", "twice"])
        if what == "swap":
            node[key] = copy.deepcopy(draw.choice(ODD))
        elif what == "drop":
            del node[key]
        elif what == "add" and isinstance(node, dict):
            node[draw.choice(["x", "", "epochss", "__class__", "a" * 300])] = draw.choice(ODD)
        elif isinstance(node, list):
            node.insert(key, copy.deepcopy(node[key]))
    return tree


def spoilt(data: bytes, draw: random.Random) -> bytes:
    """Bytes cut, flipped, overwritten, repeated, or others in their place."""
    at = draw.randrange(len(data)) if data else 0
    what = draw.choice(["cut", "flip", "flips", "zeros", "twice", "foreign", "mark", "insert"])
    if what == "cut":
        return data[:at]
    if what in ("flip", "flips"):
        some = bytearray(data)
        for _ in range(1 if what == "flip" else 30):
            if some:
                some[draw.randrange(len(some))] ^= 1 << draw.randrange(8)
        return bytes(some)
    if what == "zeros":
        return data[:at] + bytes(min(64, len(data) - at)) + data[at + 64 :]
    if what == "insert":
        return data[:at] + draw.randbytes(draw.randrange(1, 40)) + data[at:]
    if what == "mark":
        return b"\xef\xbb\xbf" + data
    return data * 2 if what == "twice" else draw.choice(FOREIGN)


FOREIGN = [
    b"", b"\x00", b"\xff\xfe{\x00", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 100_000, b"NaN", b"[1e999]",
    b'"' + b"a" * 1000,
    b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x93NUMPY", b"{}", b"[]", b"null", b"{\n// ours\n}", b'"\\ud800"',
    struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 2) + b"{}", b"task,stage\n" + b"x" * 200_000, b"\r\n,,,\n" * 50,
]  # fmt: skip


def written(tree: Any, draw: random.Random) -> bytes:
    """A changed tree as a file, or its file spoilt."""
    if draw.random() < 0.3:
        return spoilt(json.dumps(tree, indent=1).encode(), draw)
    return json.dumps(changed(tree, draw), indent=1).encode("utf-8", "surrogatepass")


# Kinds of input -------------------------------------------------------------------------------------------------------


class Corpus:
    """Right inputs of every kind, and how each kind is read; made once below a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "right" / "run"
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            self.stream = lab.stream("digits", tasks="8,2")
            lab.train("dne", self.stream, folder=self.run, progress=False, **SMALL)
        self.packed = (folder / "right" / "run.zip", folder / "right" / "run.safetensors")
        archive.export(self.run, self.packed[0])
        archive.export_model(self.run, self.packed[1])
        load = lambda name: json.loads(next(iter(sorted(RECORDS.glob(name)))).read_text())  # noqa: E731
        self.trees = {
            "record": json.loads((self.run / "record.json").read_text()),
            "attention record": load("attention/*.json"),
            "ablation record": load("ablation/*.json"),
            "cost record": load("cost/dne-k1-50+10x5.json"),
            "benchmark": load("timing/bench*.json") if list(RECORDS.glob("timing/bench*.json")) else _bench(),
            "configuration": json.loads((self.run / "config.json").read_text()),
            "list of runs": [{"name": "a", "method": "dne", "preset": "digits", "settings": {"network.heads": "2,1"}}],
        }
        self.kinds: dict[str, Callable[[random.Random], None]] = {
            **{name: lambda draw, name=name: self.of_tree(name, draw) for name in self.trees},  # type: ignore[misc]
            "run folder": self.of_run, "archive": self.of_archive, "curves": self.of_curves,
            "settings": self.of_settings, "words": self.of_words, "arrays": self.of_arrays,
        }  # fmt: skip

    # Each writes what is wrong and reads it.

    def place(self, name: str, data: bytes) -> Path:
        file = self.folder / "wrong" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data)
        return file

    def of_tree(self, kind: str, draw: random.Random) -> None:
        file = self.place("dne-k1-50+10x5.json" if kind == "cost record" else "record.json",
                          written(self.trees[kind], draw))  # fmt: skip
        look_at(kind, file)

    def of_run(self, draw: random.Random) -> None:
        copied = self.folder / "wrong" / "run"
        shutil.copytree(self.run, copied)
        file = draw.choice(sorted(copied.iterdir()))
        data = file.read_bytes()
        if file.suffix == ".json":
            data = written(json.loads(data), draw)
        elif file.suffix == ".safetensors" and draw.random() < 0.7:
            data = with_header(data, draw)
        else:
            data = spoilt(data, draw)
        file.write_bytes(data)
        if draw.random() < 0.3:
            (copied / "last.safetensors").unlink(missing_ok=True)
        run = lab.open(copied, progress=False)
        if not run.finished:
            return
        run.record.table()
        run.model_at(1)

    def of_archive(self, draw: random.Random) -> None:
        right = draw.choice(self.packed)
        data = right.read_bytes()
        if right.suffix == ".zip" and draw.random() < 0.5:
            data = repacked(data, draw)
        elif right.suffix != ".zip" and draw.random() < 0.5:
            data = with_header(data, draw)
        else:
            data = spoilt(data, draw)
        file = self.place(right.name, data)
        report.text(report.find([file]))
        _ = lab.open(file, progress=False).model

    def of_curves(self, draw: random.Random) -> None:
        self.place("record.json", (self.run / "record.json").read_bytes())
        self.place("curves.csv", spoilt((self.run / "curves.csv").read_bytes(), draw))
        for view in run_views.find(self.folder / "wrong"):
            run_views.losses(view.curves)

    def of_settings(self, draw: random.Random) -> None:
        name = draw.choice([*field_names(Config), "k", "x", "learn", "options.width", "network.head", "a.b.c"])
        value = draw.choice([*ODD, "3,100000", "1,2,x", "crop,flip", "12,1" * 1000, 10**6, "1" * 5000])
        if draw.random() < 0.5:
            value = value if isinstance(value, str) else json.dumps(value)
        made = Config().with_changes({name.replace("NAME", "width"): value})
        assert made.sha256 and Config() is not made

    def of_words(self, draw: random.Random) -> None:
        text = draw.choice([str(value) for value in ODD if not isinstance(value, int) or value < 10**300])
        text = draw.choice([text, f"0-{text}", f"{text},{text}", text[::-1], f"1,{text}", "-", "0-", "5-1", "1" * 5000])
        ask = draw.choice(
            [arguments.numbers, sizes, arguments.count, lambda t: arguments.settings([t]), report.suffixes]
        )
        ask(text)

    def of_arrays(self, draw: random.Random) -> None:
        import numpy as np

        images, labels = np.zeros((6, 8, 8), np.uint8), np.arange(6) % 3
        parts: list[Any] = [images, labels, images.copy(), labels.copy()]
        where = draw.randrange(4)
        one = parts[where]
        parts[where] = draw.choice([
            one[:0], one[:3], one.astype(float), one[:, None], one.astype(int) + 2 * 10**8, -one.astype(int) - 1,
            one.astype("U"), one.T, None, "x", [[1], [2, 3]],
        ])  # fmt: skip
        if draw.random() < 0.5:
            lab.stream(tuple(parts), base=3)
            return
        buffer = io.BytesIO()
        names = ("train_images", "train_labels", "test_images", "test_labels")
        np.savez(
            buffer,
            **{
                n: np.asarray(p) for n, p in zip(names, parts, strict=True) if p is not None and not isinstance(p, list)
            },
        )
        data = buffer.getvalue() if draw.random() < 0.5 else spoilt(buffer.getvalue(), draw)
        lab.stream(str(self.place("own.npz", data)), base=3).test_images(2)

    def one(self, kind: str, draw: random.Random) -> str:
        """Tries one input: "right" or "told", or raises what a user must never see."""
        wrong = self.folder / "wrong"
        shutil.rmtree(wrong, ignore_errors=True)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        def late(*_: object) -> None:
            raise TooSlowError(f"longer than {SECONDS} s")

        signal.signal(signal.SIGALRM, late)
        signal.alarm(SECONDS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.kinds[kind](draw)
            ended = "right"
        except LabError as error:
            assert 10 < len(str(error)) < 6000 and "Traceback" not in str(error), str(error)[:300]
            str(error).encode()
            ended = "told"
        finally:
            signal.alarm(0)
        rise = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert rise < MEGABYTES, f"memory rose by {rise:.0f} MB"
        return ended


def look_at(kind: str, file: Path) -> None:
    """Reads a file of one kind and makes what is shown of it."""
    if kind == "record":
        found = report.find([file])
        report.text(found)
        report.drawings(found)
        run_views.table(run_views.find(file.parent))
        report.protocols_text(found, [file])
    elif kind == "attention record":
        attention.drawings(Decomposition.among(file))
    elif kind == "ablation record":
        contributions.ablation_drawings(AblationRecord.among(file))
    elif kind == "cost record":
        cost_growth([cost_records.read(file)])
    elif kind == "benchmark":
        step_time(read_bench(file))
    elif kind == "configuration":
        shutil.move(file, file.with_name("config.json"))
        lab.open(file.parent, progress=False)
    else:
        run_list.table(run_list.read(file, file.parent / "runs"))


def _bench() -> dict[str, Any]:
    tree = {"train_step": {"6": 3.5}, "seconds": {"train_step_6": 0.5, "inference_6": 0.1}, "batch": 64, "threads": 1}
    return tree | {"device": "cpu", "rates": {"float32": 1e11}, "step_flops": {"6": 10**9}, "product_share": {"6": 0.5}}


def with_header(data: bytes, draw: random.Random) -> bytes:
    """A safetensors file whose JSON of ours is changed."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    ours = json.loads(header["__metadata__"]["dne-lab"])
    header["__metadata__"]["dne-lab"] = json.dumps(changed(ours, draw))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def repacked(data: bytes, draw: random.Random) -> bytes:
    """An archive with a file changed, left out, or added."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        hit = draw.choice(old.namelist())
        for name in old.namelist():
            content = old.read(name)
            if name == hit:
                if draw.random() < 0.2:
                    continue
                content = written(json.loads(content), draw) if name.endswith(".json") else spoilt(content, draw)
            new.writestr(name, content)
        if draw.random() < 0.1:
            new.writestr(draw.choice(["../x", "/tmp/x", "x.txt", "a" * 300]), b"x")
    return out.getvalue()


Ends = dict[str, collections.Counter[str]]


def attempt(folder: Path, count: int, seed: int) -> tuple[Ends, list[str]]:
    """Tries ``count`` inputs, all kinds in turn; how they ended by kind, and what was neither told nor right."""
    corpus = Corpus(folder)
    before = snapshot(folder / "right")
    ends: Ends = {kind: collections.Counter() for kind in corpus.kinds}
    faults = []
    for number in range(count):
        kind = list(corpus.kinds)[number % len(corpus.kinds)]
        try:
            ends[kind][corpus.one(kind, random.Random(f"{seed} {number}"))] += 1
        except Exception as error:
            ends[kind]["fault"] += 1
            at = error.__traceback__
            while at is not None and at.tb_next is not None:
                at = at.tb_next
            where = "" if at is None else f"{Path(at.tb_frame.f_code.co_filename).name}:{at.tb_lineno}"
            faults.append(f"{kind}, seed {seed}, number {number}: {type(error).__name__} {str(error)[:200]} ({where})")
    if snapshot(folder / "right") != before:
        faults.append("files of the user have changed")
    return ends, faults


if __name__ == "__main__":
    wanted, start = (int(word) for word in [*sys.argv[1:], *("1000", "0")[len(sys.argv) - 1 :]])
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as made:
        table, wrong = attempt(Path(made).resolve(), wanted, start)
    print("\n".join(wrong))
    for name, counts in table.items():
        told = " ".join(f"{end} {counts[end]:6}" for end in ("told", "right", "fault"))
        print(f"{name:18} tried {sum(counts.values()):6} {told}")
    sys.exit(bool(wrong))
