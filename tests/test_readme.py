"""The README's own classes, defined outside the package and trained as a reader would train them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import dne_lab as lab
from dne_lab.methods import Method

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SMALL = {
    "learn__epochs": 4, "tune__epochs": 1, "learn__batch": 64, "learn__lr": 0.01, "memory__budget": 40,
    "network__depth": 2, "network__head_width": 4, "network__heads": (2, 1), "network__patch": 4,
}  # fmt: skip


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Other tests do not see these methods."""
    torch.set_num_threads(1)
    monkeypatch.setattr(Method, "registry", dict(Method.registry))
    yield


def block(title: str) -> tuple[str, str]:
    """The first Python block under a heading, up to its run, and that run."""
    text = README.split(f"### {title}\n", 1)[1].split("```python\n", 1)[1].split("```", 1)[0]
    return text[: text.index("\nrun = ")], text[text.index("\nrun = ") :]


@pytest.mark.parametrize(("title", "name"), [("Your own variant", "dne-first"), ("Your own method", "plain")])
def test_a_class_of_the_readme_learns(title: str, name: str, tmp_path: Path) -> None:
    source, call = block(title)
    assert f'lab.train("{name}", lab.stream("digits"))' in call
    exec(compile(source, title, "exec"), {"__name__": "notebook"})
    settings = {"preset": "digits", "progress": False, "device": "cpu", **SMALL}
    run = lab.train(name, lab.stream("digits", tasks=(6, 4)), folder=tmp_path / name, **settings)
    record = run.record
    assert record.finished and record.method == name and record.flops_spent and record.memory["stored"] == 40
    assert record.seen_accuracy[0] > 2 * 100 / 6
    assert len(record.table()) == 2
    again = lab.open(tmp_path / name)
    assert again.record.without_timing() == record.without_timing()
