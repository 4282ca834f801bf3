"""What read-outs hold: linear classifiers on frozen features, trained with all training images of every class."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import field
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from tqdm import tqdm

from dne_lab.analysis.probe import evaluating
from dne_lab.core.errors import LabError
from dne_lab.core.schema import Like, document
from dne_lab.data.stream import ClassStream
from dne_lab.measure.comparison import place_of
from dne_lab.measure.measurement import Measurement, by_setting, options_of, trained
from dne_lab.measure.metrics import interval, rounded
from dne_lab.measure.record import Classes, Name, Number, Percent, Section, Seed, Simple, Some, Whole
from dne_lab.measure.tables import brief
from dne_lab.methods.base import Method
from dne_lab.methods.dytox import DyToxViT
from dne_lab.models.expandable import ExpandableViT
from dne_lab.training.run import Run

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.pipeline import Pipeline

ALL, FIRST, LATER, OWN = "all", "expert 1", "later", "the run's classifier"
BATCH = 256  # images at a time
DECAY = 1e-4  # L2 penalty of the weights, per image: decay / 2 |W|^2 beside the mean cross entropy
ITERATIONS, TOLERANCE = 1000, 1e-4  # of L-BFGS: at most so many; until the gradient's largest entry is so small

# images (B, C, H, W) uint8 -> one (B, width) tensor per read-out, and the run's own scores (B, classes)
Forward = Callable[[Tensor], tuple[list[Tensor], Tensor]]


class LinearProbe:
    """What `linear_probe` found; accuracies in percent on test images.

    Attributes:
        rows: a dictionary for each set of read-outs, see `table`, and one for the run's own classifier.
        widths: of the read-outs.
        task_classes: classes of each task.
        train_images, test_images: how many.
    """

    def __init__(
        self, rows: list[dict[str, Any]], widths: list[int], task_classes: Sequence[int], images: tuple[int, int]
    ) -> None:
        self.rows, self.widths, self.task_classes = rows, widths, tuple(task_classes)
        self.train_images, self.test_images = images

    def table(self) -> "pd.DataFrame":
        """One row for each set of read-outs: all, expert 1, the later ones together, each later one, then what the
        run's own classifier says of the same images.

        Returns:
            Columns ``read-outs``, ``width``, ``accuracy %`` over all classes with ``+-``, half the width of its 95%
            interval over images, ``told %``: accuracy within the task when the task is told, ``train %`` accuracy on
            the training images, ``iterations`` of the fit, then ``task 1 %`` ... and ``told task 1 %`` ....
        """
        return frame(self.rows)

    def accuracy(self, readouts: str = ALL) -> float:
        """Accuracy over all classes of one set of read-outs, percent.

        Raises:
            LabError: no such set; a network with one read-out has no "later" ones.
        """
        return _row(self.rows, readouts)["accuracy"]

    @property
    def gain(self) -> float:
        """All read-outs over expert 1 alone, in percentage points."""
        return self.accuracy(ALL) - self.accuracy(FIRST)

    def __repr__(self) -> str:
        table = brief(self.table())
        return f"LinearProbe({self.train_images} training images, {self.test_images} test images)\n{table}"


class Row(Section):
    """A set of read-outs."""

    read_outs: Name = Field(alias="read-outs")
    width: Whole
    accuracy: Percent
    spread: Number | None = Field(alias="+-")
    by_task: list[Percent | None] = Field(alias="by task")
    told: Percent
    told_by_task: list[Percent | None] = Field(alias="told by task")
    train: Percent | None = None


@document
class ProbeRecord(Measurement):
    """What `probe_study` found: `LinearProbe` of a run, with what is needed to believe it.

    ``run`` is the id of the run's record, ``LA`` its accuracy, ``trained`` tells which training the weights come from.
    ``rows`` hold for each set of read-outs ``accuracy`` with ``+-``, ``told`` (within the task when the task is told),
    both also ``by task``, ``train`` accuracy, and how the fit ended. ``fit`` are its settings.
    """

    ADVICE: ClassVar[str] = "Make it again: dne-lab report RUN --probe."

    run: Name
    method: Name
    preset: Name
    dataset: Name
    seed: Seed
    tasks: list[Classes]
    heads: list[Classes]
    LA: Annotated[float, Like(Percent)] | None
    train_images: Some
    test_images: Some
    widths: list[Whole]
    fit: Simple
    rows: Annotated[list[dict[str, Any]], Like(Annotated[list[Row], Field(min_length=1)])]
    config_sha256: Name
    code_version: Name
    torch: Name
    device: Name
    trained: Simple = field(default_factory=dict)
    options: Simple = field(default_factory=dict)
    kind: str = "probe"
    format: int = 1

    def table(self) -> "pd.DataFrame":
        """`LinearProbe.table`."""
        return frame(self.rows)

    def row(self, readouts: str) -> dict[str, Any]:
        """The row of a set of read-outs; `LabError` if there is none."""
        return _row(self.rows, readouts)


def probe_study(run: Run, progress: bool = True) -> ProbeRecord:
    """The linear probes of a finished run as a record.

    Raises:
        LabError: a run that is not finished, one whose training images are not there, and what `linear_probe` raises.
    """
    record = run.record
    if not run.finished:
        raise LabError(f"{run!r} is not finished: train it to its end, then probe its read-outs.")
    found = linear_probe(run.method, run.whole_stream, progress=progress)
    settings = {"decay": DECAY, "iterations": ITERATIONS, "tolerance": TOLERANCE}
    return ProbeRecord(
        run=record.id, method=record.method, preset=record.preset, dataset=record.dataset, seed=record.seed,
        tasks=record.tasks, heads=record.heads, LA=record.LA, train_images=found.train_images,
        test_images=found.test_images, widths=found.widths,
        fit=settings | {"scikit-learn": version("scikit-learn")},
        rows=rounded(found.rows), config_sha256=record.config_sha256, code_version=record.code_version,
        torch=torch.__version__, device=run.device.type, trained=trained(record), options=options_of(record),
    )  # fmt: skip


def linear_probe(
    model: nn.Module, stream: ClassStream, *, batch_size: int = BATCH, progress: bool = True
) -> LinearProbe:
    """Trains linear classifiers on frozen read-outs and says what each holds.

        found = lab.linear_probe(run.model, stream)
        found.table()  # all experts, expert 1 alone, the later ones, each: accuracy, and with the task told
        found.gain     # points that the later experts add to expert 1

    It separates what features hold from what the classifier lost: every class has all its training images, so nothing
    depends on exemplars. Each probe is multinomial logistic regression (L2, L-BFGS from zero: no chance in it) on
    features of mean 0 and deviation 1 over the training images, of the classes learned so far.

    Args:
        model: an `ExpandableViT` (``run.model``); or any method (``run.method``): one without experts has one read-out,
            its features.
        stream: with training and test images; without augmentation they are seen as they are.

    Raises:
        LabError: a network without read-outs, no training images, a class without any, a task without test images, or
            features that are not finite numbers: names the read-out.
    """
    network, forward = _source(model)
    if not isinstance(stream, ClassStream):
        raise LabError(
            f"linear_probe learns from training images, and this is a {type(stream).__name__}: give the stream, "
            "such as lab.stream('digits')."
        )
    with evaluating(network) as device:
        classes = forward(stream.images("test", stream.index("test", range(stream.classes))[:1]).to(device))[1].shape[1]
        if classes < 2:
            raise LabError("a linear probe tells classes apart, and this network has learned one: learn the next task.")
        tasks = _tasks(classes, stream)
        index = {split: _index(stream, split, tasks) for split in ("train", "test")}
        bar = tqdm(total=sum(map(len, index.values())), desc="read-outs", unit="image", leave=False,
                   disable=None if progress else True)  # fmt: skip
        with bar:
            train, test = (_read(forward, stream, split, index[split], device, batch_size, bar) for split in index)
    widths = [readout.shape[1] for readout in train.readouts]
    rows = []
    for name, places in _sets(len(widths)).items():
        x, y = (torch.cat([some.readouts[place] for place in places], 1) for some in (train, test))
        fitted = fit(x, train.labels)
        row = {"read-outs": name, "width": x.shape[1]} | _accuracies(scores_of(fitted, y), test.labels, tasks)
        row["train"] = 100 * float((scores_of(fitted, x).argmax(1) == train.labels).double().mean())
        iterations = int(fitted[-1].n_iter_.max())
        rows.append(row | {"iterations": iterations, "converged": iterations < ITERATIONS})
    rows.append({"read-outs": OWN, "width": sum(widths)} | _accuracies(test.scores, test.labels, tasks))
    return LinearProbe(rows, widths, tasks, (len(train.labels), len(test.labels)))


# The classifier ------------------------------------------------------------------------------------------------------


def fit(x: Tensor, labels: Tensor) -> "Pipeline":
    """Standardises features and minimises mean cross entropy + `DECAY` / 2 |W|^2 by L-BFGS, from zero.

    Args:
        x: (n, d) float32; a feature that never changes counts nothing.
        labels: (n,) of two classes or more.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(C=1 / (DECAY * len(x)), tol=TOLERANCE, max_iter=ITERATIONS)
    return make_pipeline(StandardScaler(), regression).fit(x.numpy(), labels.numpy())


def scores_of(fitted: "Pipeline", x: Tensor) -> Tensor:
    """(n, d) features -> (n, classes) scores, the largest of which is the answer."""
    found = torch.from_numpy(fitted.decision_function(x.numpy()))
    return found if found.dim() == 2 else torch.stack([-found, found], 1)  # of two classes it gives one column


def _sets(count: int) -> dict[str, list[int]]:
    """Which read-outs are probed together."""
    sets = {ALL: list(range(count))}
    if count > 1:
        sets |= {FIRST: [0], LATER: list(range(1, count))}
    if count > 2:
        sets |= {f"expert {place + 1}": [place] for place in range(1, count)}
    return sets


def _accuracies(scores: Tensor, labels: Tensor, tasks: Sequence[int]) -> dict[str, Any]:
    """Accuracy over all classes and within the task when it is told, overall and by task, percent."""
    ends = torch.tensor(tasks).cumsum(0)
    task = torch.bucketize(labels, ends, right=True)
    of_class = torch.bucketize(torch.arange(int(ends[-1])), ends, right=True)
    free = scores.argmax(1) == labels
    told = scores.masked_fill(of_class[None] != task[:, None], float("-inf")).argmax(1) == labels
    share = float(free.double().mean())
    return {
        "accuracy": 100 * share,
        "+-": over_images(100 * share, len(labels)),
        "by task": [100 * float(free[task == t].double().mean()) for t in range(len(tasks))],
        "told": 100 * float(told.double().mean()),
        "told by task": [100 * float(told[task == t].double().mean()) for t in range(len(tasks))],
    }


# The features --------------------------------------------------------------------------------------------------------


class _Data(NamedTuple):
    readouts: list[Tensor]
    scores: Tensor
    labels: Tensor


def _source(model: nn.Module) -> tuple[nn.Module, Forward]:
    """The network, and how it is looked at."""
    network = getattr(model, "model", model) if isinstance(model, Method) else model
    if isinstance(network, ExpandableViT) and not isinstance(network, DyToxViT):
        if not len(network.experts):
            raise LabError("this network has no expert yet, so it has no read-out: call expand, or next_task.")

        def of_experts(images: Tensor) -> tuple[list[Tensor], Tensor]:
            readouts = network.readouts(images)
            return readouts, network.classifier(readouts)

        return network, of_experts
    if isinstance(model, Method):
        return model, lambda images: ([model.features(images)], next(iter(model.predict(images).values())))
    raise LabError(
        f"linear_probe takes an ExpandableViT or a method, and this is a {type(model).__name__}, which does not say "
        "where its read-out is: give run.method in place of run.model."
    )


def _tasks(classes: int, stream: ClassStream) -> tuple[int, ...]:
    """The tasks that a network of so many classes has learned."""
    ends = [sum(stream.tasks[:number]) for number in range(1, len(stream) + 1)]
    if classes not in ends:
        raise LabError(
            f"the network tells {classes} classes apart, and the stream's tasks end at {', '.join(map(str, ends))}: "
            "give the stream that it has learned."
        )
    return tuple(stream.tasks[: ends.index(classes) + 1])


def _index(stream: ClassStream, split: str, tasks: Sequence[int]) -> Tensor:
    """The images of the classes learned; a `LabError` if a class has none to train with, or a task none to test."""
    index = stream.index(split, range(sum(tasks)))
    counts = torch.bincount(stream.labels(split, index), minlength=sum(tasks))
    if split == "train" and not counts.all():
        rank = int((counts == 0).nonzero()[0])
        raise LabError(
            f"class {stream.class_names[rank]!r} (rank {rank}) has no training image: a linear probe learns each class "
            "from all of its training images. Leave the class out of the stream, or add images."
        )
    for number, part in enumerate(counts.split(list(tasks)), start=1):
        if not part.any():
            raise LabError(f"task {number} has no {split} image, so a linear probe has no accuracy of it. Add some.")
    return index


def _read(
    forward: Forward, stream: ClassStream, split: str, index: Tensor, device: torch.device, batch_size: int, bar: tqdm
) -> _Data:
    """Read-outs (n, width_t) and scores (n, classes), float32 on the CPU, and labels (n,) of images by number."""
    found: list[tuple[list[Tensor], Tensor]] = []
    for some in index.split(batch_size):
        readouts, scores = forward(stream.images(split, some).to(device))
        found.append(([readout.float().cpu() for readout in readouts], scores.float().cpu()))
        bar.update(len(some))
    readouts = [torch.cat(parts) for parts in zip(*(readouts for readouts, _ in found), strict=True)]
    for number, values in enumerate(readouts, start=1):
        wrong = ~values.isfinite().all(1)
        if wrong.any():
            place = int(wrong.nonzero()[0])
            raise LabError(
                f"read-out {number} of {len(readouts)} is NaN or infinite for {int(wrong.sum())} of {len(values)} "
                f"{split} images (the first: number {int(index[place])}): this network has diverged, or an image is "
                "damaged. Train it again with a lower learn.lr."
            )
    return _Data(readouts, torch.cat([scores for _, scores in found]), stream.labels(split, index))


# Tables --------------------------------------------------------------------------------------------------------------


def frame(rows: Sequence[dict[str, Any]]) -> "pd.DataFrame":
    """Rows of a probe as `LinearProbe.table`."""
    import pandas as pd

    made = []
    for row in rows:
        made.append(
            {"read-outs": row["read-outs"], "width": row["width"], "accuracy %": row["accuracy"], "+-": row["+-"]}
            | {"told %": row["told"], "train %": row.get("train"), "iterations": row.get("iterations")}
            | {f"task {t} %": value for t, value in enumerate(row["by task"], start=1)}
            | {f"told task {t} %": value for t, value in enumerate(row["told by task"], start=1)}
        )
    return pd.DataFrame(made)


def probe_table(found: Iterable[ProbeRecord]) -> "pd.DataFrame":
    """One row per preset, method and set of read-outs: means over the seeds.

    Returns:
        Columns preset, method, heads, read-outs, ``seeds``, ``width``, ``accuracy %`` over all classes and ``told %``,
        within the task when the task is told, each with its ``+-`` (95%, over ``interval``: seeds, Student's t; of a
        single seed over images), and both by task.

    Raises:
        LabError: two records of the same run.
    """
    import pandas as pd

    found = sorted(found, key=lambda r: (r.preset, place_of(r.method), r.heads, r.seed))
    made = by_setting(found, lambda r: (r.preset, r.method, tuple(r.heads), tuple(r.tasks)))
    rows: list[dict[str, Any]] = []
    for (preset, method, heads, _), members in made.items():
        for parts in zip(*(member.rows for member in members), strict=True):
            row = {"preset": preset, "method": method, "heads": ", ".join(map(str, heads))}
            row |= {"read-outs": parts[0]["read-outs"], "seeds": len(members), "width": parts[0]["width"]}
            for name in ("accuracy", "told"):
                mean, width = interval([one[name] for one in parts])
                one = members[0].test_images
                row |= {f"{name} %": mean, f"{name} +-": over_images(mean, one) if width is None else width}
            row["interval"] = "images" if len(members) == 1 else "seeds"
            for name, title in (("by task", "task"), ("told by task", "told task")):
                values = zip(*(one[name] for one in parts), strict=True)
                row |= {f"{title} {t} %": sum(v) / len(v) for t, v in enumerate(values, start=1)}
            rows.append(row)
    return pd.DataFrame(rows)


def over_images(percent: float, images: int) -> float:
    """Half the width of the 95% interval of an accuracy over images, in points."""
    share = percent / 100
    return 196 * (share * (1 - share) / images) ** 0.5


def _row(rows: Sequence[dict[str, Any]], readouts: str) -> dict[str, Any]:
    for row in rows:
        if row["read-outs"] == readouts:
            return row
    names = [str(row["read-outs"]) for row in rows]
    why = "" if LATER in names else " One read-out stands for the whole network: there is no later expert."
    raise LabError(f"no probe of read-outs {readouts!r}. There are: {', '.join(names)}.{why}")
