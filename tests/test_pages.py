"""The pages are what the committed records say, and their code, commands and links work for somebody who tries them."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import dne_lab as lab
from dne_lab.core.errors import LabError
from dne_lab.measure import record
from dne_lab.methods import Method, base

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "figures"))
import draw  # noqa: E402
import facts  # noqa: E402
import pages  # noqa: E402

FOLDERS = [ROOT / "dne_lab" / name for name in ("methods", "analysis", "training", "data")]
BY_HAND = [*(folder / "README.md" for folder in FOLDERS), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
ALL = [*BY_HAND, *(pages.place(name) for name in pages.templates())]
SMALL = {
    "learn__epochs": 4, "tune__epochs": 1, "learn__batch": 64, "learn__lr": 0.01, "memory__budget": 40,
    "network__depth": 2, "network__head_width": 4, "network__heads": (2, 1), "network__patch": 4,
}  # fmt: skip


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Other tests do not see the methods that are defined here."""
    torch.set_num_threads(1)
    monkeypatch.setattr(Method, "registry", dict(Method.registry))
    yield


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


# Generated again, compared ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", pages.templates())
def test_a_page_is_what_its_template_and_the_records_say(name: str) -> None:
    assert pages.page(name) == read(pages.place(name)), "write it again: python figures/pages.py"


def test_thumbnails_are_of_the_notebooks_pictures() -> None:
    pictures = pages.thumbnails()
    assert set(pages.THUMBNAILS.glob("*.png")) == set(pictures)
    assert all(pages.is_of(file, data) for file, data in pictures.items()), "write them again: python figures/pages.py"


def test_pages_change_with_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A record that changes its numbers changes the page; ``--check`` says which and writes nothing."""
    folder = "reproduce_digits_s0-4"
    for one in record.find(facts.RECORDS / folder):
        tree = one.to_dict()
        if one.method == "joint":
            tree |= {"accuracy": [[98.0]], "seen_accuracy": [98.0], "LA": 98.0, "AA": 98.0}
        record.Record(**tree).write(tmp_path / folder / f"{one.method}-{one.seed}.json")
    (tmp_path / "digits.md").write_text("old")
    monkeypatch.setattr(facts, "RECORDS", tmp_path)
    monkeypatch.setattr(pages, "templates", lambda: ["digits.md"])
    monkeypatch.setattr(pages, "place", lambda name: tmp_path / name)
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "thumbnails", dict)
    monkeypatch.setattr(pages, "THUMBNAILS", tmp_path / "thumbnails")
    assert pages.main(["--check"]) == 1 and "would write digits.md" in capsys.readouterr().out
    assert read(tmp_path / "digits.md") == "old"
    assert pages.main([]) == 0 and "| Joint | 98.00 | 0.00 |" in read(tmp_path / "digits.md")
    assert pages.main(["--check"]) == 0


def test_a_sentence_that_does_not_hold_any_more_is_an_error() -> None:
    with pytest.raises(LabError, match="do not say any more that up is down"):
        pages.environment().from_string("{% do holds(1 > 2, 'up is down') %}").render()
    with pytest.raises(LabError, match="no runs of 'Nothing'"):
        pages.environment().from_string("{{ runs('digits100').gap('Nothing', 'Joint') }}").render()


# What a reader can try --------------------------------------------------------------------------------------------


def test_the_front_page_is_short_and_has_the_two_commands() -> None:
    text = read(ROOT / "README.md")
    assert len(text.encode()) <= 10_000
    lines = text.splitlines()
    assert "python -m venv .venv && .venv/bin/pip install -e . && .venv/bin/dne-lab reproduce" in lines
    assert 'python -m venv .venv && .venv/bin/pip install -e ".[test]" && .venv/bin/pytest' in lines
    assert next(i for i, line in enumerate(lines) if line.startswith("![")) < 10  # a picture without scrolling
    assert (ROOT / "figures" / "explorer.png").stat().st_size < 300_000


@pytest.mark.parametrize("file", ALL, ids=name_of)
def test_links_and_pictures_are_there(file: Path) -> None:
    text = re.sub(r"```.*?```", "", read(file), flags=re.DOTALL)
    found = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text)
    missing = [target for target in found if "://" not in target and not (file.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("file", ALL, ids=name_of)
def test_commands_are_there(file: Path) -> None:
    from dne_lab.commands import cli
    from dne_lab.core import presets

    known = {command.name or getattr(command.callback, "__name__", "") for command in cli.app.registered_commands}
    text = read(file)
    assert set(re.findall(r"dne-lab ([a-z]+)", text)) <= known
    for names in re.findall(r"--preset ([a-z][\w,-]+)", text):
        base.configure("icarl", names)
    for setting in re.findall(r"--set (\w[\w.]*=[^\s`]+)", text):
        name, value = setting.split("=")
        presets.resolve("digits", {name: value})


def blocks(file: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", read(file), flags=re.DOTALL)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """DNE after two tasks of the digits, as small as it goes."""
    settings = {"folder": tmp_path_factory.mktemp("runs") / "dne", "progress": False, "device": "cpu", **SMALL}
    return lab.train("dne", lab.stream("digits", tasks=(6, 4)), **settings)


def test_the_lines_of_the_front_page(trained: Any) -> None:
    (source,) = blocks(ROOT / "README.md")
    call = 'lab.train("dne", lab.stream("digits"))'
    assert source.count(call) == 1
    *lines, last = source.replace(call, "trained").strip().splitlines()
    names = {"trained": trained}
    exec("\n".join(lines), names)
    frame = eval(last, names)
    assert {"image", "query_patch", "key_expert", "attention"} <= set(frame.columns)
    assert set(frame["image"]) == set(range(8))


def test_the_lines_of_the_page_on_analysis(trained: Any) -> None:
    """All blocks but that on timm run one after another, on few images."""
    source = "\n".join(block for block in blocks(ROOT / "dne_lab" / "analysis" / "README.md") if "timm" not in block)
    call = 'lab.train("dne", stream)'
    assert source.count(call) == 1
    names: dict[str, Any] = {"trained": trained}
    exec(source.replace(call, "trained").replace("test_images(300)", "test_images(20)"), names)
    assert names["sweep"].matrix().shape == (1, 2) and names["found"].accuracy() > 2 * 100 / 10


@pytest.mark.parametrize("name", ["dne-first", "dne-warmed", "plain"])
def test_a_class_of_your_own_learns(name: str, tmp_path: Path) -> None:
    """The variant and the method of the page on methods, trained as a reader would train them."""
    call = f'lab.train("{name}", lab.stream("digits"))'
    (source,) = [block for block in blocks(ROOT / "dne_lab" / "methods" / "README.md") if call in block]
    exec(compile(source[: source.index("\nrun = ")], name, "exec"), {"__name__": "notebook"})
    settings = {"preset": "digits", "progress": False, "device": "cpu", **SMALL}
    run = lab.train(name, lab.stream("digits", tasks=(6, 4)), folder=tmp_path / name, **settings)
    made = run.record
    assert made.finished and made.method == name and made.flops_spent and made.memory["stored"] == 40
    assert made.seen_accuracy[0] > 2 * 100 / 6
    assert len(made.table()) == 2 and run.model.classifier.classes == 10
    assert lab.open(tmp_path / name).record.without_timing() == made.without_timing()


def test_the_citation_names_the_paper_and_this_version() -> None:
    cited = yaml.safe_load(read(ROOT / "CITATION.cff"))
    assert cited["version"] in read(ROOT / "pyproject.toml")
    (paper,) = cited["references"]
    assert paper["title"] == "Dense Network Expansion for Class Incremental Learning" and len(paper["authors"]) == 5


def test_committed_figures_are_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same tables to the byte, and pictures, whose bytes depend on the version of matplotlib."""
    monkeypatch.setattr(draw, "FIGURES", tmp_path)
    draw.main(["cost", "digits-tuning"])
    made = sorted(tmp_path.iterdir())
    assert {file.suffix for file in made} == {".csv", ".png"} and len(made) >= 4
    for file in made:
        if file.suffix == ".csv":
            assert file.read_bytes() == (ROOT / "figures" / file.name).read_bytes()
    with pytest.raises(LabError, match="digits-tuning"):
        draw.main(["digits-tunning"])
