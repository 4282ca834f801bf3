"""What `ablate` gives: logits before and after, accuracies, attention groups, and what was not touched."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dne_lab.analysis.cutter import warning
from dne_lab.analysis.images import Part
from dne_lab.analysis.removal import Removal
from dne_lab.analysis.shares import AttentionGroups
from dne_lab.models.expandable import Output

if TYPE_CHECKING:
    import pandas as pd

ALL = "all"


class Ablation:
    """One removal and what it did.

    Attributes:
        how: "mean", "zero" or "mask".
        what: was removed, in words.
        removal: the entries.
        before, after: logits, (n, classes) float32 on the CPU.
        labels: (n,) ranks, or None.
        index: (n,) image numbers.
        task_classes: classes of each task.
        mass: percent of a touched row's attention that was on the removed entries.
        empty_rows: rows, over all images, of which "mask" left nothing; they stay 0.
        old_readouts_identical: whether the read-outs of all experts before the first one touched are the same to the
            last bit; None if expert 1 was touched.
        moved: for each expert the largest change of any of its outputs (read-outs); exactly 0.0 are the same bits.
        groups_before, groups_after: the attention groups of all attention that has rows for the labelling, or None.
            Under "zero" and "mean" rows do not sum to 1, and shares after are in units of a whole row.
    """

    def __init__(self, how: str, removal: Removal, task_classes: tuple[int, ...]) -> None:
        self.how, self.removal, self.what, self.task_classes = how, removal, removal.what, task_classes
        self.first = min(removal.experts)
        self.mass, self.empty_rows = float("nan"), 0
        self.old_readouts_identical: bool | None = None if self.first == 1 else True
        self.moved: list[float] = []
        self.groups_before: AttentionGroups | None = None
        self.groups_after: AttentionGroups | None = None
        self.before = self.after = self.index = torch.zeros(0)
        self.labels: Tensor | None = None
        self._parts: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = []

    def add(self, some: Part, before: Output, after: Output) -> None:
        """Takes the outputs of a batch."""
        self._parts.append((before.logits.float().cpu(), after.logits.float().cpu(), some.numbers, some.labels))
        largest = [float((new - old).abs().max()) for old, new in zip(before.readouts, after.readouts, strict=True)]
        self.moved = [max(pair) for pair in zip(self.moved or largest, largest, strict=True)]
        for one, other in zip(before.readouts[: self.first - 1], after.readouts, strict=False):
            self.old_readouts_identical = bool(self.old_readouts_identical and torch.equal(one, other))

    def done(self) -> "Ablation":
        """Joins the batches."""
        before, after, index, labels = zip(*self._parts, strict=True)
        self.before, self.after, self.index = torch.cat(before), torch.cat(after), torch.cat(index).cpu()
        self.labels = None if any(part is None for part in labels) else torch.cat(labels).cpu()
        self._parts = []
        return self

    @property
    def warning(self) -> str:
        """What to beware of: "mask" in task attention; else ""."""
        return warning(self.how, self.removal.kinds)

    @property
    def change(self) -> Tensor:
        """After minus before, for every logit: (n, classes)."""
        return self.after - self.before

    def table(self) -> "pd.DataFrame":
        """One row for all images and, where there are labels, one a task.

        Returns:
            Columns ``task`` ("all", 1, 2, ..), ``images``, ``before %`` and ``after %`` accuracy, ``loss`` = before -
            after in percentage points with ``+-`` the half width of its 95% interval over images, ``changed %`` of the
            answers, ``mean |logit change|``. Without labels there are no accuracies and no tasks. Images of classes
            that the network has not learned are in no row that has accuracies.
        """
        import pandas as pd

        if self.labels is None:
            changed = self.before.argmax(1) != self.after.argmax(1)
            row = {"task": ALL, "images": len(self.before), "changed %": 100 * float(changed.double().mean())}
            return pd.DataFrame([row | {"mean |logit change|": float(self.change.abs().double().mean())}])
        tally = Tally(self.task_classes)
        tally.add(self.before, self.after, self.labels)
        places: list[str | int] = [ALL, *tally.tasks()]
        return pd.DataFrame([{"task": task, **tally.row(task)} for task in places])

    def __repr__(self) -> str:
        empty = f"; {self.empty_rows} rows left empty" if self.empty_rows else ""
        told = f"Ablation({self.how}: {self.what}; {self.mass:.1f}% of these rows' attention{empty})"
        told += f"\nBeware: {self.warning}" if self.warning else ""
        return f"{told}\n{self.table().round(2).to_string(index=False, na_rep='')}"


class Tally:
    """Counts of answers before and after, by task, added up over batches. Rows are tasks."""

    def __init__(self, task_classes: tuple[int, ...]) -> None:
        self.ends = torch.tensor(task_classes).cumsum(0)
        self.counts = torch.zeros(len(task_classes), 6, dtype=torch.float64)

    def add(self, before: Tensor, after: Tensor, labels: Tensor) -> None:
        """Logits (n, classes) and ranks (n,); images of unknown classes are left out."""
        known = (labels >= 0) & (labels < int(self.ends[-1]))
        before, after, labels = before[known.to(before.device)], after[known.to(after.device)], labels[known].cpu()
        answers = [logits.argmax(1).cpu() for logits in (before, after)]
        was, now = (answer == labels for answer in answers)
        change = (after - before).abs().double().mean(1).cpu() if len(labels) else torch.zeros(0)
        columns = [torch.ones(len(labels)), was, now, was != now, answers[0] != answers[1], change]
        task = torch.bucketize(labels, self.ends, right=True)
        self.counts.index_add_(0, task, torch.stack([c.double() for c in columns], 1))

    def tasks(self) -> list[int]:
        """The tasks that have images."""
        return [number for number, count in enumerate(self.counts[:, 0].tolist(), start=1) if count]

    def row(self, task: int | str) -> dict[str, Any]:
        """The columns of `Ablation.table` for a task, or "all"; NaN without images."""
        sums = self.counts.sum(0) if task == ALL else self.counts[int(task) - 1]
        images, was, now, flipped, changed, change = sums.tolist()
        n = images or float("nan")
        loss = (was - now) / n
        return {
            "images": int(images),
            "before %": 100 * was / n,
            "after %": 100 * now / n,
            "loss": 100 * loss,
            "+-": 196 * max(flipped / n - loss**2, 0.0) ** 0.5 / n**0.5,
            "changed %": 100 * changed / n,
            "mean |logit change|": change / n,
        }
