"""Malformed files and words by the thousand: what is made of right ones by changing, cutting, swapping and blowing up.

Each is read as a command or a notebook would read it, and has to end in a `LabError` or a result, within ten seconds
and two gigabytes, with all files as they were. `python tests/malformed.py 20000 [SEED [KIND]]` prints a table.
"""

import collections
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import odd_words
from hypothesis import strategies as st
from shell import snapshot
from spoiling import (
    ODD,
    other_tensors,
    repacked,
    spoilt,
    trees_of,
    unsealed_tensors,
    with_header,
    without_seals,
    written,
)

import dne_lab as lab
from dne_lab.analysis import run_views
from dne_lab.analysis.ablation_study import AblationRecord
from dne_lab.analysis.decomposition import Decomposition
from dne_lab.analysis.read_outs import ProbeRecord
from dne_lab.commands import arguments, report
from dne_lab.commands.check import examined
from dne_lab.core.config import Config, field_names
from dne_lab.core.errors import LabError
from dne_lab.data.stream import sizes
from dne_lab.measure import cost_records
from dne_lab.plots import attention, contributions
from dne_lab.plots.cost_figures import cost_growth, read_bench, step_time
from dne_lab.training import archive, run_list

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "figures" / "records"
SECONDS, MEGABYTES = 10, 2000  # of one core, and that one input may take
SMALL = {"network__heads": (2, 1), "network__depth": 2, "network__head_width": 4, "network__patch": 4}
SMALL |= {"learn__epochs": 1, "tune__epochs": 1, "memory__budget": 20, "data__tasks": "8,2", "learn__batch": 256}

SCHEMA_OF = {
    "record": "record", "attention record": "attention", "ablation record": "ablation", "probe record": "probe",
    "cost record": "cost", "benchmark": "bench", "configuration": "config", "list of runs": "grid",
}  # fmt: skip


class TooSlowError(Exception):
    """An input took longer than `SECONDS`, or waited for something that never comes."""


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
        self.older = folder / "right" / "older"  # the same run as versions without digests left it
        shutil.copytree(self.run, self.older)
        record = without_seals(json.loads((self.older / "record.json").read_text()))
        (self.older / "record.json").write_text(json.dumps(record))
        for file in self.older.glob("*.safetensors"):
            file.write_bytes(unsealed_tensors(file.read_bytes()))
        odd_words.bystanders(folder / "right")
        odd_words.pictures(folder / "right" / "pictures")
        load = lambda name: json.loads(next(iter(sorted(RECORDS.glob(name)))).read_text())  # noqa: E731
        self.trees = {
            "record": json.loads((self.run / "record.json").read_text()),
            "attention record": load("attention/*.json"),
            "ablation record": load("ablation/*.json"),
            "probe record": load("probe/*.json"),
            "cost record": load("cost/dne-k1-50+10x5.json"),
            "benchmark": load("timing/bench*.json") if list(RECORDS.glob("timing/bench*.json")) else _bench(),
            "configuration": json.loads((self.run / "config.json").read_text()),
            "list of runs": [{"name": "a", "method": "dne", "preset": "digits", "settings": {"network.heads": "2,1"}}],
        }
        forked = {"run": "ia", "task": 1, "config_sha256": "0" * 64, "settings_sha256": "1" * 64}
        self.others = {  # more right ones, with what the first ones lack
            "record": [
                *(json.loads(next(RECORDS.glob(f"*/{name}.json")).read_text()) for name in ("icarl-s0", "joint-s0")),
                self.trees["record"] | {"forked_from": forked, "data_changes": [{"at": "task 1", "told": ["x"]}]},
            ],
            "attention record": [load("attention/sta*.json"), load("attention/ia*.json")],
            "ablation record": [load("ablation/*mask.json")],
        }
        self.kinds: dict[str, Callable[[random.Random], None]] = {
            **{name: lambda draw, name=name: self.of_tree(name, draw) for name in self.trees},  # type: ignore[misc]
            "run folder": lambda draw: self.of_run(draw, self.run),
            "older run folder": lambda draw: self.of_run(draw, self.older),
            "archive": self.of_archive, "curves": self.of_curves, "images": self.of_images,
            "settings": self.of_settings, "words": self.of_words, "arrays": self.of_arrays,
            "command line": self.of_command,
        }  # fmt: skip
        for name in self.trees:
            self.kinds[f"{name}: schema"] = lambda draw, name=name: self.of_schema(name, draw)  # type: ignore[misc]
        self.drawn: dict[str, list[Any]] = {}

    # Each writes what is wrong and reads it.

    def place(self, name: str, data: bytes) -> Path:
        file = self.folder / "wrong" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data)
        return file

    def of_tree(self, kind: str, draw: random.Random) -> None:
        tree = draw.choice([self.trees[kind], *self.others.get(kind, [])])
        look_at(kind, self.place(name_of(kind), written(without_seals(tree) if draw.random() < 0.8 else tree, draw)))

    def of_schema(self, kind: str, draw: random.Random) -> None:
        tree = self.drawn[kind].pop() if self.drawn.get(kind) else self.trees[kind]
        text = json.dumps(tree).encode("utf-8", "surrogatepass")
        look_at(kind, self.place(name_of(kind), text))

    def draw_schemas(self, each: int, seed: int) -> None:
        """Contents for `of_schema`, by hypothesis."""
        for kind, tree in self.trees.items():
            self.drawn[kind] = drawn(trees_of(SCHEMA_OF[kind], without_seals(tree)), each, seed)

    def of_run(self, draw: random.Random, right: Path) -> None:
        copied = self.folder / "wrong" / "run"
        shutil.copytree(right, copied)
        file = draw.choice(sorted(copied.iterdir()))
        data = file.read_bytes()
        if file.suffix == ".json":
            data = written(json.loads(data), draw)
        elif file.suffix == ".safetensors" and draw.random() < 0.8:
            data = draw.choice([with_header, other_tensors])(data, draw)
        else:
            data = spoilt(data, draw)
        file.write_bytes(data)
        if draw.random() < 0.1:
            file.unlink()
        if draw.random() < 0.5:
            (copied / "last.safetensors").unlink(missing_ok=True)
        if draw.random() < 0.4:
            suffix = draw.choice([".zip", ".safetensors"])
            export = archive.export if suffix == ".zip" else archive.export_model
            packed = Path(export(copied, self.folder / "wrong" / f"run{suffix}"))
            _ = lab.open(packed, progress=False).model_at(2)
            return
        run = lab.open(copied, progress=False)
        if not run.finished:
            return
        run.record.table()
        run.model_at(1)
        run.model_at(2)

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
        self.place("record.json", (draw.choice([self.run, *[self.older] * 3]) / "record.json").read_bytes())
        self.place("curves.csv", spoilt((self.run / "curves.csv").read_bytes(), draw))
        for view in run_views.find(self.folder / "wrong"):
            run_views.losses(view.curves)

    def of_images(self, draw: random.Random) -> None:
        copied = self.folder / "wrong" / "pictures"
        shutil.copytree(self.folder / "right" / "pictures", copied)
        odd_words.spoil_pictures(copied, draw)
        stream = lab.stream(str(copied), tasks="2,1", size=8)
        stream.test_images(2)
        examined(str(copied), size=8)

    def of_command(self, draw: random.Random) -> None:
        wrong = self.folder / "wrong" / "here"
        wrong.mkdir(parents=True)
        before = snapshot(self.folder / "right")
        try:
            odd_words.command(wrong, self.folder / "right", draw)
        finally:
            self.check_untouched(before)

    def check_untouched(self, before: dict[str, tuple[str, int]]) -> None:
        """All files of the user are what they were; new ones, which --out asked for, go."""
        after = snapshot(self.folder / "right")
        assert before.items() <= after.items(), "files of the user have changed"
        for file in after.keys() - before.keys():  # asked for by --out
            Path(file).unlink()

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
        before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()

        def late(*_: object) -> None:
            raise TooSlowError(f"longer than {12 * SECONDS} s by the clock")

        signal.signal(signal.SIGALRM, late)
        signal.alarm(12 * SECONDS)  # other processes may have the cores
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
        if (taken := time.process_time() - begun) > SECONDS:
            raise TooSlowError(f"{taken:.1f} s")
        return ended


def drawn(strategy: st.SearchStrategy[Any], count: int, seed: int) -> list[Any]:
    """What hypothesis makes of a strategy, the same for the same seed."""
    found: list[Any] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(strategy)
    def keep(one: Any) -> None:
        found.append(one)

    keep()
    return found


def name_of(kind: str) -> str:
    """The file name that a kind needs."""
    return "dne-k1-50+10x5.json" if kind == "cost record" else "record.json"


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
    elif kind == "probe record":
        contributions.read_out_drawings(ProbeRecord.among(file))
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


Ends = dict[str, collections.Counter[str]]


def attempt(folder: Path, count: int, seed: int, only: str = "") -> tuple[Ends, list[str]]:
    """Tries ``count`` inputs, all kinds in turn (or some); how each kind ended, and what was no right end."""
    corpus = Corpus(folder)
    kinds = [kind for kind in corpus.kinds if only in kind]
    corpus.draw_schemas(-(-count // len(kinds)), seed)
    before = snapshot(folder / "right")
    ends: Ends = {kind: collections.Counter() for kind in kinds}
    faults = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        try:
            ends[kind][corpus.one(kind, random.Random(f"{seed} {number}"))] += 1
        except Exception as error:
            ends[kind]["fault"] += 1
            at = error.__traceback__
            while at is not None and at.tb_next is not None:
                at = at.tb_next
            where = "" if at is None else f"{Path(at.tb_frame.f_code.co_filename).name}:{at.tb_lineno}"
            faults.append(f"{kind}, seed {seed}, number {number}: {type(error).__name__} {str(error)[:300]} ({where})")
    if snapshot(folder / "right") != before or {p.name for p in folder.iterdir()} - {"right", "wrong"}:
        faults.append("files of the user have changed")
    return ends, faults


if __name__ == "__main__":
    wanted, start = (int(word) for word in [*sys.argv[1:3], *("1000", "0")[len(sys.argv[1:3]) :]])
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as made:
        table, wrong = attempt(Path(made).resolve(), wanted, start, *sys.argv[3:4])
    print("\n".join(wrong))
    for name, counts in table.items():
        told = " ".join(f"{end} {counts[end]:6}" for end in ("told", "right", "fault"))
        print(f"{name:25} tried {sum(counts.values()):6} {told}")
    sys.exit(bool(wrong))
