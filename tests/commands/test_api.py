"""The verbs of a notebook: what they take for granted, what they refuse."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dne_lab as lab
from dne_lab.commands import arguments
from dne_lab.core.errors import LabError
from dne_lab.core.presets import PRESETS
from dne_lab.methods import Method

SMALL: dict[str, Any] = {
    "learn__epochs": 1, "tune__epochs": 1, "learn__batch": 128, "network__depth": 2, "network__head_width": 4,
    "network__heads": "2,1", "network__patch": 4, "memory__budget": 20, "progress": False, "device": "cpu",
}  # fmt: skip


def test_the_preset_is_that_of_the_data_if_none_is_named() -> None:
    stream = lab.stream("digits")
    named = lab.start("dne", stream, preset="digits").config
    assert lab.start("dne", stream).config == lab.start("dne").config == named
    assert named.preset == "digits" and named.network.head_width == PRESETS["digits"]["network"]["head_width"]
    assert lab.start("dne", stream, preset="authors-code").config.preset == "authors-code"


def test_fields_are_set_with_two_underscores_or_in_groups() -> None:
    stream = lab.stream("digits", order=3)
    config = lab.start("dne", stream, learn__epochs=5, network__heads=3, seed=7).config
    assert (config.learn.epochs, config.seed, config.data.order) == (5, 7, "3")
    assert config.network.heads == (PRESETS["digits"]["network"]["heads"][0], 3)
    assert lab.start("dne", stream, learn={"epochs": 5, "lr": 0.1}).config.learn.lr == 0.1


def test_a_slice_of_a_stream_is_trained_on_resumed_and_opened_by_itself(tmp_path: Path) -> None:
    whole = lab.stream("digits", tasks=(4, 3, 3), order=3)
    part = whole[:2]
    run = lab.start("dne", part, folder=tmp_path / "run", **SMALL)
    assert (run.config.data.tasks, run.config.data.order) == ((4, 3), ",".join(map(str, whole.order[:7])))
    run.next_task()
    again = lab.start("dne", part, folder=tmp_path / "run", **SMALL)
    assert again.cursor == run.cursor == (2, 0, 0, 0)
    again.train()
    assert again.record.tasks == [4, 3] and again.record.class_order == list(whole.order[:7])
    opened = lab.open(tmp_path / "run")
    assert opened.stream.order == part.order and opened.record == again.record
    in_memory = lab.train("dne", part, **SMALL)
    assert in_memory.record.without_timing() == again.record.without_timing()
    assert lab.train("joint", part, **SMALL).record.tasks == [7]
    with pytest.raises(LabError, match=r"belongs to another configuration: data\.tasks"):
        lab.start("dne", whole, folder=tmp_path / "run", **SMALL)


def test_the_first_task_of_a_slice_is_that_of_the_whole() -> None:
    whole = lab.stream("digits", tasks=(4, 3, 3))
    run = lab.start("dne", whole[:2], **SMALL)
    run.next_task()
    other = lab.start("dne", whole, **SMALL)
    other.next_task()
    assert run.record.accuracy == other.record.accuracy


def test_arrays_are_opened_with_their_stream(tmp_path: Path) -> None:
    labels = np.arange(3).repeat(4)
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    stream = lab.stream((images, labels, images, labels), base=2, step=1)
    run = lab.train("finetune", stream, folder=tmp_path / "run", **SMALL)
    assert lab.open(tmp_path / "run", stream).record == run.record
    with pytest.raises(LabError, match="arrays cannot be opened by name"):
        lab.open(tmp_path / "run")
    with pytest.raises(LabError, match="preset 'digits' is for 'digits', but the stream is 'arrays'"):
        lab.start("dne", stream, preset="digits")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stream": "digits"}, r"stream = 'digits': must be a stream, such as dne_lab\.stream\('digits'\) makes"),
        ({"stream": np.zeros(3)}, r"stream = array.*: must be a stream"),
        ({"method": ["dne"]}, r"method = \['dne'\]: must be text"),
        ({"preset": 3}, "preset = 3: must be text"),
        ({"folder": ""}, "name of a file or folder is empty"),
        ({"accept_changed_data": "no"}, "accept_changed_data = 'no': must be True or False"),
        ({"device": "gpu"}, r"device 'gpu' cannot be used .* This machine has: cpu"),
        ({"folder": 0}, "0: must be a path"),
        ({"epochs": 3}, r"unknown field 'epochs'\. Did you mean tune\.epochs or stem\.epochs or learn\.epochs"),
        ({"learn__epoch": 3}, r"unknown field 'learn\.epoch'\. Did you mean learn\.epochs"),
        ({"data__tasks": (5, 5)}, r"data\.tasks = \(5, 5\), but the stream has tasks \(4, 2, 2, 2\)"),
        ({"options__x": 1}, r"unknown field 'options\.x'"),
        ({"preset": "cifar100-b50-2"}, "is for 'cifar100', but the stream is 'digits'"),
    ],
)
def test_wrong_arguments_say_what_is_allowed(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        lab.start(**{"method": "dne", "stream": lab.stream("digits"), **arguments})


def test_help_names_every_method_of_the_library() -> None:
    """The list of the command line is typed, because it may not import the methods; so is that of `start`."""
    named = re.findall(r"[\w-]+", arguments.METHODS.replace("on a residual network", ""))
    there = {name for name, cls in Method.registry.items() if cls.__module__.startswith("dne_lab.")}
    assert sorted(named) == sorted(there)
    told = str(lab.start.__doc__).split("method:")[1].split(", or one of your own")[0]
    assert set(re.findall(r"[\w-]+", told)) == there
