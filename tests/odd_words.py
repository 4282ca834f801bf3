"""Command lines with words that nobody means, and folders of pictures with files that are none.

The commands run in this process, in a folder of their own. They may write there alone.
"""

import contextlib
import io
import os
import random
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from dne_lab.commands import cli
from dne_lab.core.errors import LabError

WORDS = [
    "", "-", "--", "x", "a" * 300, "x/" * 3000, "\u00e9" * 300, "\u202e", "\udcff", "nan", "inf", "-1", "0", "1", "2",
    "1e999", "-1e5", "0.5", "0-99999999999", "5-1", "1,,3", ",", "1,2,x", "1" * 5000, str(10**18), "12,1" * 1000, "=",
    "a=", "=b", "a.b=c", "network.heads=3,100000", "network.head_width=1000000", "learn.lr=nan", "learn.epochs=1e9",
    "data.path=/dev/zero", "data.tasks=1", "data.name=cifar100", "options.width=4", "learn.batch=0", "seed=3", "none",
    "network.stem=conv", "auto", "--help", "--json", "-v", "--set", "--seeds", "dne", "ia,sta", "joint", "der",
    "digits", "digits100,small", "cifar100", "mask", "png,xyz", "LA,AA,zz", "../../../x", "../x", "~", "~nobody/x", "*",
    "$(x)", "%s%n", "\n",
]  # fmt: skip


def bystanders(right: Path) -> None:
    """Files of a user that no command may touch."""
    (right / "thesis.docx").write_bytes(b"PK\x03\x04 years of work")
    (right / "notes.json").write_text('{"mine": [1, 2, 3]}')
    (right / "broken.json").write_text('{"method": "dne", "seen_accuracy": [')
    (right / "empty").write_bytes(b"")
    np.savez(right / "own.npz", train_images=np.zeros((4, 8, 8), np.uint8))
    list_of_runs = '[{"name": "a", "method": "dne", "preset": "digits", "settings": {"network.heads": "2,1"}}]'
    (right / "list.json").write_text(list_of_runs)
    (right / "bare").mkdir()


def pictures(root: Path) -> None:
    """An image folder of three classes."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 2)):
        for name in ("ant", "bee", "cow"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (9, 12, 3), dtype=np.uint8)
                suffix = ("png", "jpg", "bmp")[number]
                Image.fromarray(pixels).save(root / split / name / f"{number}.{suffix}")


def spoil_pictures(root: Path, draw: random.Random) -> None:
    """Something in an image folder becomes what it should not be."""
    from spoiling import spoilt

    file = draw.choice(sorted(path for path in root.rglob("*") if path.is_file()))
    what = draw.randrange(12)
    if what < 5:
        file.write_bytes(spoilt(file.read_bytes(), draw))
    elif what == 5:
        file.rename(file.with_name("\u00e9\u202e\n" + file.name))
    elif what == 6:
        data = file.read_bytes()
        file.unlink()
        what_instead = draw.choice(["pipe", "folder", "loop", "device", "nothing", "long"])
        if what_instead == "pipe":
            os.mkfifo(file)
        elif what_instead == "folder":
            file.mkdir()
        elif what_instead == "long":
            file.write_bytes(data * 1000)
        else:
            file.symlink_to({"loop": file, "device": "/dev/zero", "nothing": "nowhere.png"}[what_instead])
    elif what == 7:
        foreign = [
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            b"P6 99999999 99999999 255\n",
            b"II*\0" + bytes(99),
        ]
        file.with_suffix(draw.choice([".ppm", ".tif", ".gif", ".webp"])).write_bytes(draw.choice(foreign))
    elif what == 8:
        shutil.rmtree(draw.choice([file.parent, file.parent.parent]))
    elif what == 9:
        name = draw.choice(["", "\u00e9" * 80, ".hidden", "new", "a\nb"])
        (file.parent.parent / name / "sub").mkdir(parents=True, exist_ok=True)
    elif what == 10:
        big = Image.fromarray(np.zeros(draw.choice([(1, 30_000), (3000, 3), (1, 1)]), np.uint8))
        big.save(file.with_suffix(".png"))
    else:
        modes = ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"]
        mode = draw.choice(modes)
        Image.new(mode, (7, 5)).save(file.with_suffix(".tif"))


def lines(right: Path, draw: random.Random) -> list[str]:
    """A command that would be right, or nearly; it trains nothing that takes long."""
    run, packed, model = right / "run", right / "run.zip", right / "run.safetensors"
    any_run = str(draw.choice([run, packed, model, right / "older", run / "record.json"]))
    plan = ["run", "dne", "--preset", "digits", "--set", "learn.epochs=1", "--seeds", "0", "--out", "o", "--jobs", "1"]
    return draw.choice([
        [*plan, "--device", "cpu", "--stop-after", "1", "--checkpoint-every", "5", "--dry-run"],
        ["run", "--grid", str(right / "list.json"), "--out", "o", "--dry-run"],
        ["run", "--config", str(run / "config.json"), "--set", "seed=4", "--dry-run"],
        ["run", "--from", str(run), "--after", "0", "--set", "learn.epochs=1", "--out", "o", "--stop-after", "0"],
        ["report", any_run, "--json", "--columns", "LA,AA", "--format", "png"],
        ["report", any_run, "--columns", "LA,AA", "--latex", "--name", "n", "--json"],
        ["report", any_run, "--attention", "-1", "--ablation", "5", "--how", "mask", "--out", "o", "--json"],
        ["cost", "dne", "--tasks", "5,2", "--heads", "2,1", "--preset", "digits", "--set", "network.depth=2"],
        ["cost", "sta", "--tasks", "5,2", "--preset", "digits", "--match", "ia", "--json"],
        ["export", any_run, draw.choice(["o.zip", "o.safetensors"]), "--half"],
        ["export", str(run), "o.zip"],
        ["check", str(draw.choice([right / "pictures", right / "own.npz"])), "--size", "8", "--json"],
        ["presets", "digits", "--json"],
        ["schema", "record"],
        ["bench", "--tasks", "1", "--batch", "0", "--pairs", "0", "--preset", "digits"],
        ["reproduce", "--preset", "digits", "--seeds", "0", "--jobs", "1", "--out", str(right / "thesis.docx")],
    ])  # fmt: skip


def odd(right: Path, draw: random.Random) -> str:
    """A word that nobody means here."""
    names = [
        "thesis.docx",
        "notes.json",
        "broken.json",
        "empty",
        "own.npz",
        "list.json",
        "bare",
        "run",
        "older",
        "run.zip",
    ]
    names += ["run.safetensors", "run/record.json", "run/task_01.safetensors", "run/x.zip", "pictures", "no/such", ""]
    places = ["pipe", "/dev/null", "/dev/zero", "/proc/self/mem", "/dev/stdin", "loop"]
    return draw.choice([draw.choice(WORDS), draw.choice(WORDS), str(right / draw.choice(names)), draw.choice(places)])


TRAINS = "--dry-run", "--stop-after", "--pairs"  # with their values, what keeps a command short


def command(here: Path, right: Path, draw: random.Random) -> None:
    """Runs a command with one to three words changed in ``here``.

    Raises:
        LabError: it ended with a sentence. AssertionError: it ended in another way.
    """
    os.mkfifo(here / "pipe")
    (here / "loop").symlink_to("loop")
    words = lines(right, draw)
    for _ in range(draw.choice([1, 1, 2, 3])):
        at = draw.randrange(1, len(words))
        if words[at] in TRAINS or words[at - 1] in TRAINS or (words[0] == "reproduce" and words[at - 1] == "--out"):
            continue
        what = draw.random()
        words[at : at + (what < 0.85)] = [odd(right, draw)] if what < 0.95 else []
    said = io.StringIO(), io.StringIO()
    before, argv, home = Path.cwd(), sys.argv, os.environ.get("HOME")
    os.chdir(here)
    os.environ["HOME"], sys.argv = str(here), ["dne-lab", *words]
    code: object = 0
    try:
        with contextlib.redirect_stdout(said[0]), contextlib.redirect_stderr(said[1]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cli.main()
    except SystemExit as end:
        code = end.code or 0
    except Exception as error:
        raise AssertionError(f"{words}: {type(error).__name__}: {error}"[:600]) from error
    finally:
        os.chdir(before)
        sys.argv = argv
        os.environ.pop("HOME") if home is None else os.environ.update(HOME=home)
    out, err = (text.getvalue().encode(errors="backslashreplace").decode() for text in said)  # as a terminal has it
    assert code in (0, 2), f"{words} ended with {code}: {err[-300:]}"
    assert "Traceback" not in out + err, f"{words}: {err[-300:]}"
    if code == 2:
        assert len(err.strip()) > 10, f"{words} said nothing"
        raise LabError(f"{err.strip()[:3000]} .........")
