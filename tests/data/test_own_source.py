"""A source that is neither of the package's, from its definition to a resumed run."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import dne_lab as lab
from dne_lab.core.errors import LabError
from dne_lab.data import identity
from dne_lab.data.source import Source
from dne_lab.data.stream import ClassStream

README = (Path(lab.__file__).parent / "data" / "README.md").read_text(encoding="utf-8")
SMALL = {
    "network__depth": 2, "network__heads": (2, 1), "network__head_width": 4, "network__patch": 4, "memory__budget": 6,
    "learn__epochs": 1, "tune__epochs": 1, "progress": False,
}  # fmt: skip


def noise() -> Source:
    """The README's example."""
    (code,) = re.findall(r"```python\n(import numpy[^`]*class Noise.*?)```", README, re.DOTALL)
    names = {}
    exec(code, names)
    return names["Noise"]()


def test_the_example_of_the_readme_is_trained_stopped_and_opened_again(tmp_path):
    whole = lab.train("dne", lab.stream(noise(), tasks=(2, 1)), **SMALL)
    first = lab.start("dne", lab.stream(noise(), tasks=(2, 1)), folder=tmp_path / "run", **SMALL)
    first.next_task()
    del first
    run = lab.open(tmp_path / "run", lab.stream(noise(), tasks=(2, 1)), progress=False)
    run.train()
    assert run.record.accuracy == whole.record.accuracy
    for one, other in zip(run.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(LabError, match="noise"):
        lab.open(tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.array([0, 1, -1, 2]), "-1"),
        (np.array([0, 1, 2, 3]), "to 3"),
        (np.array([0.0, 1.0, 2.0]), "float64"),
        ([0, 1, 2], "list"),
    ],
)
def test_labels_of_every_source_are_checked(monkeypatch, labels, said):
    source = noise()
    monkeypatch.setattr(type(source), "labels", lambda self, split: labels)
    with pytest.raises(LabError, match=f"train labels.*{said}"):
        ClassStream(source, (2, 1))


def test_names_without_a_folder_tell_images_apart(monkeypatch):
    source = noise()
    monkeypatch.setattr(type(source), "names", lambda self, s: [f"{s}{n}.png" for n in range(len(self.labels(s)))])
    keys = identity.Images.of(source).keys("train")
    assert len({*keys}) == 30
