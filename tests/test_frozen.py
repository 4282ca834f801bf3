"""What does not change while the house is rebuilt: names that users, files and scripts rely on.

`python tests/test_frozen.py` writes frozen.json again, for a change that is wanted.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import typer.main

import dne_lab as lab
from dne_lab.commands.cli import app
from dne_lab.core.config import Config
from dne_lab.measure.cost import blank_stream
from dne_lab.measure.record import Record
from dne_lab.methods import base
from dne_lab.training.position import Position

FILE = Path(__file__).with_name("frozen.json")
SMALL = {"network.patch": 4, "network.depth": 2, "network.head_width": 4, "network.heads": "2,1", "options.width": 2}


def options() -> dict[str, list[str]]:
    """The options and arguments of each command."""
    commands: dict[str, Any] = getattr(typer.main.get_command(app), "commands")  # noqa: B009
    return {
        name: sorted(word for parameter in command.params for word in (*parameter.opts, *parameter.secondary_opts))
        for name, command in sorted(commands.items())
    }


def weights(method: str) -> list[str]:
    """Names and shapes of what a method keeps after two tasks."""
    takes_width = issubclass(base.find(method), base.find("finetune-resnet").__mro__[1])
    changes = {name: value for name, value in SMALL.items() if takes_width or not name.startswith("options")}
    made = base.create(base.configure(method, "", changes | {"memory.budget": 10}), blank_stream((2, 1), (3, 8, 8)))
    for task in made.stream:
        for stage in made.stages(task):
            made.enter(task, stage)
    return [f"{name} {tuple(value.shape)}" for name, value in made.state_dict().items()]


def frozen() -> dict[str, Any]:
    """Everything that is held, JSON-able."""
    methods = [n for n, cls in sorted(base.Method.registry.items()) if cls.__module__.startswith("dne_lab.methods")]
    return {
        "lab": sorted(lab.__all__),
        "options": options(),
        "config": Config().to_dict(),
        "record": sorted(field.name for field in dataclasses.fields(Record)),
        "checkpoint": sorted(field.name for field in dataclasses.fields(Position)),
        "weights": {method: weights(method) for method in methods},
    }


def test_names_and_shapes_are_what_they_were() -> None:
    expected, found = json.loads(FILE.read_text()), json.loads(json.dumps(frozen()))
    assert found.keys() == expected.keys()
    for part, there in expected.items():
        assert found[part] == there, f"{part} has changed"


if __name__ == "__main__":
    FILE.write_text(json.dumps(frozen(), indent=1) + "\n")
