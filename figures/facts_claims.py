"""What the templates of the pages may ask of claims: what the paper states, and the gates of a protocol."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import facts
import pandas as pd
from facts import n, runs

from dne_lab.analysis import ablation_study, decomposition, gates, read_outs
from dne_lab.claims import status
from dne_lab.claims.evidence import Evidence
from dne_lab.claims.reasons import REASONS
from dne_lab.measure import tables
from dne_lab.measure.record import Record


def gates_table() -> str:
    """The gates of a protocol and what each asks."""
    return tables.to_markdown(pd.DataFrame([{"gate": name, "asks": asks} for name, asks in gates.ASKS.items()]))


def gates_of(*folders: str) -> str:
    """The gates of the one protocol of which there are runs in these folders, with what all committed records say."""
    return tables.to_markdown(gates.table(_gates(runs(*folders).records)))


def _gates(records: Sequence[Record]) -> list[gates.Gate]:
    return gates.gates(
        records,
        *(
            kind.find(facts.RECORDS / folder)
            for kind, folder in ((read_outs.ProbeRecord, "probe"), (decomposition.Decomposition, "attention"))
        ),
        ablation_study.AblationRecord.find(facts.RECORDS / "ablation"),
    )


def gates_overview(*folders: str) -> str:
    """One row a protocol, one column a gate: its value ± interval, and whether it is met; empty without a record."""
    rows = []
    for protocol, members in gates.protocols(runs(*folders).records).items():
        row = {"protocol": protocol}
        for gate in _gates(members):
            half = "" if gate.half is None else f" ± {n(gate.half, 2)}"
            row[gate.name] = "" if gate.value is None else f"{n(gate.value, 2)}{half} {gate.verdict}"
        rows.append(row)
    return tables.to_markdown(pd.DataFrame(rows))


def before_stage_2(*folders: str) -> str:
    """What was predicted before stage 2 of each task, one row per method."""
    return tables.to_markdown(gates.before_stage_2(runs(*folders).records).round(1))


@cache
def _evidence(records: Path) -> Evidence:
    return status.evidence(records)


def claims_table() -> str:
    """One row a statement: figure, sentence, notebook, status."""
    frame = status.overview(_evidence(facts.RECORDS)).drop(columns="found")
    frame["notebook"] = [notebook_link(number) for number in frame["notebook"]]
    return tables.to_markdown(frame)


def reasons_table() -> str:
    """One row for each thing that has to be so if the paper's reasons are right: status, what was found, p."""
    frame = status.details(_evidence(facts.RECORDS), REASONS)
    p = ["" if pd.isna(value) else f"{value:.2g}" for value in frame["p (Holm)"]]
    columns = {"figure": "reason", "the paper states": "if it is right", "status": "status", "found": "found"}
    return tables.to_markdown(frame[list(columns)].rename(columns=columns).assign(**{"p (Holm)": p}))


def reason(says: str) -> str:
    """The status of the statement that begins so, of those that the paper's reasons imply."""
    frame = status.details(_evidence(facts.RECORDS), REASONS)
    (found,) = frame[frame["the paper states"].str.startswith(says)]["status"]
    return str(found)


def claims_found() -> str:
    """A paragraph for every statement that was judged: its comparisons."""
    lines = []
    details = status.details(_evidence(facts.RECORDS))
    for (figure, says), rows in details.groupby(["figure", "the paper states"], sort=False):
        judged = rows[rows["on"] != ""]
        if len(judged):
            lines.append(f"**{figure}: {says}**\n")
            for on, some in judged.groupby("on", sort=False):
                lines.append(f"- {on}:")
                for found, outcome, p in zip(some["found"], some["status"], some["p (Holm)"], strict=True):
                    lines.append(f"  - {found} ({outcome}{'' if pd.isna(p) else f', p {p:.2g}'})")
            lines.append("")
    return "\n".join(lines)


def notebook_link(number: str) -> str:
    """``[03](../notebooks/03_...ipynb)``."""
    (file,) = facts.NOTEBOOKS.glob(f"{number}_*.ipynb")
    return f"[{number}](../notebooks/{file.name})"
