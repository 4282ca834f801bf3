"""Linear probes of read-outs: against plain loops and another library; what they are trained with; bad input."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import dne_lab as lab
from dne_lab.analysis import read_outs
from dne_lab.analysis.read_outs import ALL, DECAY, FIRST, LATER, OWN, fit, probe_study, scores_of
from dne_lab.core.errors import LabError
from dne_lab.data.stream import ClassStream
from dne_lab.models.variants import DNE, IA
from dne_lab.training.run import Run

SMALL: dict[str, Any] = {
    "learn__epochs": 1, "tune__epochs": 0, "learn__batch": 32, "memory__budget": 20, "progress": False, "device": "cpu",
}  # fmt: skip
VIT: dict[str, Any] = {
    "network__depth": 2, "network__head_width": 4, "network__heads": "2,1", "network__patch": 4,
    "network__readout": "class_attention",
}  # fmt: skip


@pytest.fixture(scope="module")
def stream() -> ClassStream:
    return lab.stream("digits", tasks=(4, 3, 3))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, stream: ClassStream) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    made = {m: lab.train(m, stream, folder=folder / m, **SMALL, **VIT) for m in ("dne", "joint", "dytox")}
    own = {name: value for name, value in SMALL.items() if not name.startswith("tune")}  # iCaRL has no stage 2
    made["icarl"] = lab.train("icarl", stream, folder=folder / "icarl", **own, options__width=4)
    return made


def blobs(seed: int = 0, n: int = 120, d: int = 5, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    return 3 + 2 * torch.randn(n, d, generator=draw) + labels[:, None] * torch.arange(d), labels


def test_the_fit_is_the_minimum_of_its_objective() -> None:
    """The gradient of mean cross entropy + decay / 2 |W|^2 by hand: softmax minus one-hot, image by image."""
    x, labels = blobs()
    regression = fit(x, labels)[-1]
    z = ((x - x.mean(0)) / x.std(0, correction=0)).tolist()
    slope = np.zeros((3, 5))
    for row, label in zip(z, labels.tolist(), strict=True):
        powers = [np.exp(sum(w * v for w, v in zip(regression.coef_[c], row, strict=True)) + regression.intercept_[c])
                  for c in range(3)]  # fmt: skip
        for c in range(3):
            slope[c] += (powers[c] / sum(powers) - (label == c)) * np.array(row) / len(z)
    assert np.abs(slope + DECAY * regression.coef_).max() < 2e-4
    assert np.abs(regression.coef_).max() > 0.1


def test_it_is_the_same_every_time_and_a_constant_feature_counts_nothing() -> None:
    x, labels = blobs()
    one, other = (scores_of(fit(x, labels), x) for _ in range(2))
    assert torch.equal(one, other) and one.shape == (120, 3)
    constant = torch.cat([x, torch.full((len(x), 1), 7.0)], 1)
    padded = fit(constant, labels)
    assert np.abs(padded[-1].coef_[:, -1]).max() < 1e-9
    assert torch.equal(scores_of(padded, constant).argmax(1), one.argmax(1))


def test_two_classes_have_two_scores() -> None:
    x, labels = blobs(classes=2)
    x += 10 * labels[:, None]
    assert torch.equal(scores_of(fit(x, labels), x).argmax(1), labels)


def test_each_set_of_read_outs_is_probed_with_all_training_images(runs: dict[str, Run], stream: ClassStream) -> None:
    run = runs["dne"]
    found = lab.linear_probe(run.model, stream, progress=False)
    every = stream.index("train", range(10))
    assert found.train_images == len(every) > run.config.memory.budget and found.test_images == 539
    assert [row["read-outs"] for row in found.rows] == [ALL, FIRST, LATER, "expert 2", "expert 3", OWN]
    assert [row["width"] for row in found.rows] == [16, 8, 8, 4, 4, 16] and found.widths == [8, 4, 4]
    test = stream.index("test", range(10))
    with torch.no_grad():
        train = run.model.readouts(stream.images("train", every))
        seen = run.model.readouts(stream.images("test", test))
        own = run.model(stream.images("test", test)).logits
    labels = stream.labels("test", test)
    places = {ALL: (0, 1, 2), FIRST: (0,), LATER: (1, 2), "expert 2": (1,), "expert 3": (2,)}
    for row in found.rows:
        scores = own
        if row["read-outs"] != OWN:
            x, y = (torch.cat([some[i] for i in places[row["read-outs"]]], 1) for some in (train, seen))
            scores = scores_of(fit(x, stream.labels("train", every)), y)
        expected = by_hand(scores, labels, (4, 3, 3))
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, abs=0.6), (row["read-outs"], name)  # an image or two
    assert found.gain == pytest.approx(found.rows[0]["accuracy"] - found.rows[1]["accuracy"])
    assert found.rows[-1]["accuracy"] == pytest.approx(run.record.LA, abs=0.01)
    again = lab.linear_probe(run.method, stream, progress=False)
    assert again.rows == found.rows and "1258 training images" in repr(found)
    assert {"accuracy %", "told %", "task 3 %", "told task 1 %"} <= {*found.table()}


def by_hand(scores: torch.Tensor, labels: torch.Tensor, tasks: tuple[int, ...]) -> dict[str, Any]:
    """Accuracies by plain loops."""
    task_of = [t for t, count in enumerate(tasks) for _ in range(count)]
    free: list[list[bool]] = [[] for _ in tasks]
    told: list[list[bool]] = [[] for _ in tasks]
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        task = task_of[label]
        free[task].append(max(range(len(row)), key=lambda c: row[c]) == label)
        mine = [c for c in range(len(row)) if task_of[c] == task]
        told[task].append(max(mine, key=lambda c: row[c]) == label)
    every = [hit for part in free for hit in part]
    share = float(np.mean(every))
    return {
        "accuracy": 100 * share,
        "+-": 196 * (share * (1 - share) / len(every)) ** 0.5,
        "by task": [100 * float(np.mean(part)) for part in free],
        "told": 100 * float(np.mean([hit for part in told for hit in part])),
        "told by task": [100 * float(np.mean(part)) for part in told],
    }


def test_a_network_that_is_still_learning_is_probed_on_what_it_has_seen(
    runs: dict[str, Run], stream: ClassStream
) -> None:
    found = lab.linear_probe(runs["dne"].model_at(2), stream, progress=False)
    assert found.task_classes == (4, 3) and found.train_images == len(stream.index("train", range(7)))
    assert [row["read-outs"] for row in found.rows] == [ALL, FIRST, LATER, OWN]
    one = lab.linear_probe(runs["dne"].model_at(1), stream, progress=False)
    assert [row["read-outs"] for row in one.rows] == [ALL, OWN] and one.task_classes == (4,)
    with pytest.raises(LabError, match=r"no probe of read-outs 'expert 1'.*there is no later expert"):
        _ = one.gain


@pytest.mark.parametrize("method", ["joint", "dytox", "icarl"])
def test_methods_without_experts_have_one_read_out(runs: dict[str, Run], stream: ClassStream, method: str) -> None:
    run = runs[method]
    record = probe_study(run, progress=False)
    assert [row["read-outs"] for row in record.rows] == [ALL, OWN] and record.tasks == run.record.tasks
    assert record.rows[-1]["accuracy"] == pytest.approx(run.record.LA, abs=0.01)
    assert len(record.rows[0]["by task"]) == 3  # joint's too, to stand beside the others


def test_the_record_says_what_a_number_needs(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["dne"]
    record = probe_study(run, progress=False)
    assert (record.run, record.LA, record.trained["LA"]) == (run.record.id, run.record.LA, run.record.LA)
    assert record.fit["decay"] == DECAY and record.row(LATER)["width"] == 8
    record.write(tmp_path / "probe" / "one.json")
    assert read_outs.ProbeRecord.find(tmp_path) == [record]
    with pytest.raises(LabError, match="no probe of read-outs 'expert 9'"):
        record.row("expert 9")
    (tmp_path / "probe" / "one.json").write_text(json.dumps({**dataclasses.asdict(record), "format": 0}))
    with pytest.raises(LabError, match=r"probe record of another version .*Make it again: dne-lab report RUN --probe"):
        read_outs.ProbeRecord.find(tmp_path)


class Fewer(ClassStream):
    """A stream that has lost the images of one class in one split."""

    def __init__(self, whole: ClassStream, split: str, ranks: range) -> None:
        super().__init__(whole.source, whole.tasks)
        self._ranks[split] = self._ranks[split].clone()
        self._ranks[split][torch.isin(self._ranks[split], torch.tensor([*ranks]))] = -1


def test_bad_input(runs: dict[str, Run], stream: ClassStream) -> None:
    model = runs["dne"].model
    cases: list[tuple[Any, Any, str]] = [
        (runs["icarl"].model, stream, "does not say where its read-out is: give run.method"),
        (runs["dytox"].model, stream, "give run.method"),
        (tiny.model(IA, ()), stream, "no expert yet"),
        (tiny.model(IA, (1,), shape=stream.shape, classes=1), stream, "has learned one: learn the next task"),
        (model, stream.test_images(5), "learns from training images, and this is a Batch: give the stream"),
        (tiny.model(DNE, (1, 1), shape=stream.shape, classes=3), stream, "tells 6 classes apart, .* end at 4, 7, 10"),
        (model, Fewer(stream, "train", range(5, 6)), r"class '5' \(rank 5\) has no training image"),
        (model, Fewer(stream, "train", range(10)), r"class '0' \(rank 0\) has no training image"),
        (model, Fewer(stream, "test", range(4, 7)), "task 2 has no test image"),
    ]
    for network, given, message in cases:
        with pytest.raises(LabError, match=message):
            lab.linear_probe(network, given, progress=False)
    whole = lab.linear_probe(model, lab.stream("digits", tasks=(5, 5)), progress=False)
    assert whole.task_classes == (5, 5)  # other tasks of the same classes: told by task as the stream has them
    with pytest.raises(LabError, match="is not finished: train it to its end, then probe"):
        probe_study(lab.start("dne", stream, **SMALL, **VIT))


def test_features_that_are_no_numbers_are_named(stream: ClassStream) -> None:
    model = tiny.model(IA, (1, 1, 1), shape=stream.shape, classes=2)
    with torch.no_grad():
        tiny.expert(model, 2).norm.bias[0] = float("nan")
    with pytest.raises(
        LabError, match=r"read-out 2 of 3 is NaN or infinite for \d+ of \d+ train images .*the first: number"
    ):
        lab.linear_probe(model, lab.stream("digits", tasks=(2, 2, 2, 4)), progress=False)
