"""Five hundred run folders for the runs explorer: committed records under other seeds, with curves and predictions that
fit them. They are for measuring time; no number of theirs is a result."""

import dataclasses
from pathlib import Path

import numpy as np

from dne_lab.core.sealing import sha256
from dne_lab.measure.record import Record, find
from dne_lab.training.run_folder import CURVES, PREDICTIONS, curves_file, predictions_file

SOURCE = Path(__file__).parents[2] / "figures" / "records" / "digits100"
EPOCHS = 15  # of each task


def make(folder: Path, count: int = 500) -> None:
    """Writes ``count`` run folders below ``folder``, in turn of every method and setting."""
    records = [record for record in find(SOURCE) if record.seed == 0 and not record.joint]
    chance = np.random.default_rng(0)
    for number in range(count):
        record = records[number % len(records)]
        seed = number // len(records)
        shift = float(chance.normal())
        seen = [min(100.0, max(0.0, value + shift)) for value in record.seen_accuracy]
        predictions, seen = guessed(record, seen, chance)
        tree = record.config | {"seed": seed}
        here = folder / f"{record.method}-{number % len(records):02d}" / f"s{seed}"
        rows = [
            {"task": task, "stage": "learn", "epoch": epoch, "lr": 0.001, "ce": 3 / epoch + abs(shift) / 9}
            for task in range(1, len(record.tasks) + 1)
            for epoch in range(1, EPOCHS + 1)
        ]
        here.mkdir(parents=True)
        (here / CURVES).write_bytes(curves_file(rows))
        (here / PREDICTIONS).write_bytes(predictions_file(predictions))
        changes = {"seed": seed, "seen_accuracy": seen, "LA": seen[-1], "AA": float(np.mean(seen)), "config": tree}
        changes |= {"curves_sha256": "", "predictions_sha256": "", "config_sha256": sha256(b"%d" % number)}
        dataclasses.replace(record, **changes).write(here / "record.json")


def guessed(
    record: Record, seen: list[float], chance: np.random.Generator
) -> tuple[dict[str, np.ndarray], list[float]]:
    """Predictions of 20 images a class with about these accuracies, and the accuracies that they have."""
    made, found = {}, []
    for task, accuracy in enumerate(seen, start=1):
        classes = sum(record.tasks[:task])
        labels = np.repeat(np.arange(classes), 20)
        right = chance.random(len(labels)) < accuracy / 100
        predicted = np.where(right, labels, chance.integers(0, classes, len(labels)))
        made |= {f"task_{task:02d}/labels": labels, f"task_{task:02d}/classifier": predicted}
        found.append(float(100 * np.mean(labels == predicted)))
    return made, found
