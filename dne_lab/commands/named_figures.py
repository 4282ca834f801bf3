"""`lab.figure`: a figure by its name in the paper or by ours, from records in a folder."""

import re
from collections.abc import Iterable
from pathlib import Path

from dne_lab.commands import report
from dne_lab.core.errors import LabError, unknown
from dne_lab.plots.figure import Figure

# The paper's figures, and what ours of them are called. Those of a network need its model (.safetensors) in the folder.
PAPER = {
    "1 right": "figure_1_right",
    "2": "figure_2",
    "3": "figure_3",
    "4 left": "attention_groups",
    "4 right": "figure_4_right",
    "5": "figure_5",
    "6a": "figure_6a",
    "6c": "figure_6c",
    "6e": "figure_6e",
    "6f": "figure_6f",
}
OURS = (
    "accuracy_by_task", "accuracy_against_cost", "accuracy_matrix", "forgetting", "cost_growth", "step_time",
    "fragmentation", "expert_flow", "attention_along_training", "attention_at_start", "attention_by_task",
    "ablation", "read_outs",
)  # fmt: skip
MEASURED = {"attention_groups": "--attention 200", "ablation": "--ablation 200", "read_outs": "--probe"}


def figure(name: str, paths: str | Path | Iterable[str | Path] = "runs") -> Figure:
    """One figure of the records, models, counts and measurements in a folder.

        lab.figure("4 left", "runs/report").save("figure.pdf", width=3.3)

    Args:
        name: of the paper's figures 1 right, 2, 3, 4 left, 4 right, 5, 6a to 6f; or one of ours: accuracy_by_task, ...
        paths: a folder, a run, a model, or several of them.

    Raises:
        LabError: an unknown name (lists them), nothing there to draw it from, several that have the name.
    """
    if not isinstance(name, str):
        raise LabError(f"figure {name!r}: give its name as text, such as '4 left'.")
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    kind = _kind(name)
    made = report.gathered(report.find(given), None, given)
    wanted = kind or name
    found = [stem for stem in made if stem == wanted] or [stem for stem in made if _is(stem, wanted)]
    if len(found) == 1:
        return made[found[0]]
    if found:
        raise LabError(f"figure {name!r}: there are {len(found)} of them here. Name one: {', '.join(found)}.")
    if kind is None:
        raise unknown("figure", name, [*PAPER, *OURS, *made])
    first = given[0] if given else "RUN"
    option = next((words for start, words in MEASURED.items() if kind.startswith(start)), None)
    how = f" It needs what is measured: dne-lab report {first} {option} --out runs/report, then 'runs/report' here."
    how = how if option else ""
    where = ", ".join(map(str, given)) or "no folder"
    raise LabError(f"figure {name!r}: nothing in {where} to draw it from.{how} There are: {', '.join(made) or 'none'}.")


def _kind(name: str) -> str | None:
    """How our files of a figure are called; None for a name that is not known beforehand."""
    bare = re.sub(r"^fig(ure)?\.?_?", "", name.strip().lower()).replace("_", " ").strip()
    bare = re.sub(r"^(\d)\s+([a-f])$", r"\1\2", bare)
    bare = {"6b": "6a", "6d": "6c", "1": "1 right"}.get(bare, bare)  # one figure of both panels
    if bare in PAPER:
        return PAPER[bare]
    return name if name in OURS else None


def _is(stem: str, kind: str) -> bool:
    """Whether a file's name is that kind's, between a data set before it and the variant or tasks behind."""
    return re.search(rf"(^|_){re.escape(kind)}(_|$)", stem) is not None
