"""Figure of the paper -> notebook -> status: which statements our records agree with, derived, never typed."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dne_lab.analysis.decomposition import Decomposition
from dne_lab.claims.claims import CLAIMS, Claim
from dne_lab.claims.evidence import NOT_RUN, OUTCOMES, Evidence, Judgement
from dne_lab.core.errors import LabError
from dne_lab.measure import cost_records
from dne_lab.measure.record import Record, is_record, trees, unique
from dne_lab.measure.significance import SMALLEST
from dne_lab.models.controls import COLUMNS

if TYPE_CHECKING:
    import pandas as pd


def evidence(paths: str | Path | Iterable[str | Path]) -> Evidence:
    """All evidence in these folders: run records, cost records, attention statistics; exact duplicates once.

    Attention of runs that were trained beside controls is none: the paper's figures are about the methods as they are.

    Raises:
        LabError: a path that does not exist, or a damaged record.
    """
    folders = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    for folder in folders:
        if not folder.exists():
            raise LabError(f"{folder} does not exist: name a folder that holds records, e.g. figures/records.")
    found = [Record.from_tree(tree, file) for file, tree in trees(folders) if is_record(tree)]
    beside = {record.id for record in found if COLUMNS & record.config.get("options", {}).keys()}
    attention = [one for one in Decomposition.among(folders) if one.run not in beside]
    return Evidence(unique(found), cost_records.find(folders), attention)


def details(given: Evidence, claims: Sequence[Claim] = CLAIMS) -> "pd.DataFrame":
    """One row per comparison: figure, the paper's statement, notebook, status, on which data, what was found.

    A claim without any comparison is one row "not run". Beside each comparison of several seeds: p, p after Holm's
    correction within the claim's family (what decides), the half width of the interval from the standard deviation
    pooled over methods, and whether the difference is above or below the smallest one of interest.
    """
    import pandas as pd

    rows = []
    for claim in claims:
        for judgement in claim.judge(given) or [Judgement(NOT_RUN, "", "")]:
            scale = ", ".join(judgement.marks)
            rows.append(
                {"figure": claim.figure, "the paper states": claim.says, "notebook": f"{claim.notebook:02d}"}
                | {"status": judgement.outcome, "on": judgement.on, "scale": scale, "found": judgement.found}
                | {"p": judgement.p, "p (Holm)": judgement.adjusted, "+- pooled": judgement.pooled}
                | {f"beside {SMALLEST:g} points": judgement.size}
            )
    return pd.DataFrame(rows)


def overview(given: Evidence, claims: Sequence[Claim] = CLAIMS) -> "pd.DataFrame":
    """One row per claim: figure, statement, notebook, status over all comparisons, and the comparisons in words.

    The status lists every outcome that occurred, with their number where there are several; "small scale" where no
    comparison is at the paper's scale, "across networks" where all are of a transformer and a residual network.
    `details` has the comparisons of one seed that are counted here.
    """
    import pandas as pd

    rows = []
    for claim in claims:
        judged = claim.judge(given)
        counts = {name: sum(j.outcome == name for j in judged) for name in OUTCOMES}
        present = {name: count for name, count in counts.items() if count}
        texts = [name if len(judged) == 1 else f"{name} ({count})" for name, count in present.items()]
        if len(present) == 1:
            texts = list(present)
        status = ", ".join(texts) or NOT_RUN
        shared = [mark for mark in (judged[0].marks if judged else []) if all(mark in j.marks for j in judged)]
        status += f"; {', '.join(shared)}" if shared else ""
        by_place: dict[str, list[Judgement]] = {}
        for j in judged:
            by_place.setdefault(j.on, []).append(j)
        said = ". ".join(f"{on}: {_in_short(found)}" for on, found in by_place.items())
        rows.append({"figure": claim.figure, "the paper states": claim.says, "notebook": f"{claim.notebook:02d}"})
        rows[-1] |= {"status": status, "found": said}
    return pd.DataFrame(rows)


def _in_short(found: Sequence[Judgement], most: int = 3) -> str:
    """Comparisons in words; those of one seed are counted beside others, or where there are many."""
    lone = [j for j in found if j.lone]
    listed = [j.found for j in found if not j.lone] or [j.found for j in lone[:most]]
    left = len(found) - len(listed)
    return "; ".join([*listed, *([f"{left} more of one seed"] if left else [])])
