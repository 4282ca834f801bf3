"""What the paper's drawings (figures 2, 3 and 5) state, judged by what the models of our records read and hold.

A drawing has no number to compare. What can be checked is whether the models at hand are built as it says: the lines
that figure 2 draws against the attention that was measured, the keys that figure 3 counts against the keys of those
rows, and the parts of figure 5 against the parameters of the trained networks.
"""

import functools
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from dne_lab.analysis.connections import connections, parts
from dne_lab.analysis.decomposition import TRAINED, Decomposition
from dne_lab.analysis.group_tables import LATER
from dne_lab.analysis.labelling import GROUPS
from dne_lab.claims.evidence import AGREES, CONTRADICTS, Evidence, Judgement
from dne_lab.core import chance
from dne_lab.core.config import Network
from dne_lab.measure.comparison import tasks_text
from dne_lab.measure.record import Record
from dne_lab.methods.base import title_of
from dne_lab.models.attention import JOINT, TASK1, TASK2
from dne_lab.models.expandable import ExpandableViT
from dne_lab.models.variants import DNE, IA, STA
from dne_lab.plots.four_groups import groups_of_keys

VARIANTS = {variant.name: variant for variant in (IA, STA, DNE)}
BETWEEN = {IA.name: (), STA.name: (JOINT,), DNE.name: (TASK1, TASK2)}  # what the paper lets experts read others by
Line = tuple[str, int, int, int]  # kind, layer, expert that reads, expert that is read


def rebuilt(record: Decomposition | Record) -> ExpandableViT:
    """The untrained network of a record, of the shape that it had when it was finished."""
    return _built(record.method, json.dumps(record.network, sort_keys=True), tuple(record.heads))


@functools.lru_cache(maxsize=64)
def _built(method: str, network: str, heads: tuple[int, ...]) -> ExpandableViT:
    # without the weights of a backbone: they do not say who reads whom
    settings = {name: value for name, value in json.loads(network).items() if not name.startswith("backbone")}
    made = Network(**{**settings, "heads": tuple(settings["heads"])})
    # Who reads whom does not depend on the image: the smallest that the patches, or the stem, can take.
    shape = (3, 32, 32) if made.stem == "conv" else (1, 2 * made.patch, 2 * made.patch)
    with chance.seeded(0, "initialisation"):
        model = ExpandableViT(made, shape, VARIANTS[method])
        for own in heads:
            model.expand(heads=own, classes=1)
    return model


def _trained(evidence: Evidence) -> dict[str, dict[str, list[Decomposition]]]:
    """Attention records of finished runs of IA, STA and DNE with several experts, by stream and method."""
    found: dict[str, dict[str, list[Decomposition]]] = {}
    for record in evidence.attention:
        if record.finished and record.method in VARIANTS and len(record.heads) > 1 and TRAINED in record.moments:
            on = f"{record.dataset}, {tasks_text(record.tasks)}"
            found.setdefault(on, {}).setdefault(record.method, []).append(record)
    return found


def _judged(on: str, right: bool, texts: Iterable[str]) -> Judgement:
    return Judgement(AGREES if right else CONTRADICTS, on, "; ".join(texts))


def _several(records: list[Any]) -> str:
    return f"{len(records)} seeds" if len(records) > 1 else "one seed"


# Figure 2 ---------------------------------------------------------------------------------------------------------


def lines_drawn(record: Decomposition) -> set[Line]:
    """The lines between experts that `architecture.figure_2` draws for this network, of attention whose queries are
    patches."""
    kinds = (JOINT, TASK1, TASK2)
    rows = (row for row in connections(rebuilt(record)) if row["kind"] in kinds and row["read"] != row["reader"])
    return {(row["kind"], row["layer"], row["reader"], row["read"]) for row in rows}


def lines_read(record: Decomposition) -> set[Line]:
    """The connections between experts that got attention when it was measured."""
    found = set()
    for row in record.flow.get("rows", []):
        kind, layer, reader, *shares = row
        found |= {(kind, layer, reader, read) for read, share in enumerate(shares, start=1) if share and read != reader}
    if not record.flow:  # of experts that do not read each other no flow is measured, but the groups of their keys
        table = record.patches()
        elsewhere = table[table["group"].isin(("SPDH", "DPDH")) & (table["share %"] > 0)]
        found |= {(str(kind), -1, 0, 0) for kind in elsewhere["kind"]}
    return found


def as_stated(record: Decomposition, drawn: set[Line]) -> bool:
    """Whether IA has no line, and STA and DNE one to every earlier expert and to no later one, where one may be."""
    kinds = {kind for kind, _, _, _ in drawn}
    last = len(record.heads)
    pairs = {(reader, read) for reader in range(2, last + 1) for read in range(1, reader)}
    places = {(kind, layer) for kind, layer, _, _ in drawn}
    return kinds == {*BETWEEN[record.method]} and drawn == {(*place, *pair) for place in places for pair in pairs}


def who_reads_whom(evidence: Evidence) -> list[Judgement]:
    """Figure 2: the lines drawn are those that get attention, none in IA, all to earlier experts in STA and DNE."""
    found = []
    for on, by_method in _trained(evidence).items():
        right, texts = True, []
        for method in BETWEEN:
            for record in (records := by_method.get(method, [])):
                drawn, read = lines_drawn(record), lines_read(record)
                # The last block may be one of class tokens: its rows are not those of patches, and not measured.
                measured = {(kind, layer) for kind, layer, *_ in record.flow.get("rows", [])}
                shown = {line for line in drawn if line[:2] in measured or not measured}
                right &= as_stated(record, drawn) and shown == read
                missing = f", {len(shown - read)} not read" if shown - read else ""
                other = f", {len(read - shown)} not drawn" if read - shown else ""
            if records:
                text = f"{len(shown)} connections between experts drawn, {len(read)} read{missing}{other}"
                texts.append(f"{title_of(method)}: {text}, {_several(records)}")
        found.append(_judged(on, right, texts))
    return found


# Figure 3 ---------------------------------------------------------------------------------------------------------


def keys_counted(method: str, heads: list[int], expert: int, patches: int) -> dict[str, int]:
    """Keys of each group of a query of an expert, as `four_groups.figure_3` colours them; IA's are in its own copy."""
    own = sum(heads[: expert - 1])
    groups = groups_of_keys(sum(heads[:expert]), own, patches, 0)
    counts = np.bincount((groups if method == STA.name else groups[own]).ravel(), minlength=len(GROUPS))
    return {name: int(count) for name, count in zip(GROUPS, counts, strict=True)}


def kinds_of_key(evidence: Evidence) -> list[Judgement]:
    """Figure 3: rows of STA have all four kinds of key, rows of IA the two of the own head, in the numbers drawn."""
    found = []
    for on, by_method in _trained(evidence).items():
        right, texts = True, []
        for method in (IA.name, STA.name):
            for record in (records := by_method.get(method, [])):
                table = record.patches(name="table_by_expert", scope=LATER)
                for expert, rows in table.groupby("expert"):
                    there = {
                        str(g): float(k) if k == k else 0.0 for g, k in zip(rows["group"], rows["keys"], strict=True)
                    }
                    counted = keys_counted(method, record.heads, int(str(expert)), 1 + round(there["DPSH"]))
                    right &= there == counted
            if records:
                numbers = ", ".join(f"{there[name]:g} {name}" for name in GROUPS)
                texts.append(f"{title_of(method)}, expert {expert}: {numbers}, {_several(records)}")
        if texts:
            found.append(_judged(on, right, texts))
    return found


# Figure 5 ---------------------------------------------------------------------------------------------------------


def block_parts(record: Record) -> tuple[int, bool]:
    """Parameters of all blocks as `architecture.figure_5` lists them, and whether the mixing is as the paper states.

    That is, two linear layers in IA; in DNE, for every later expert, two task attention blocks that read its own heads
    and those of all experts before it.
    """
    rows = parts(rebuilt(record))
    right = True
    for row in rows:
        if row["part"] in ("mix1", "mix2"):
            dense = record.method == DNE.name and row["expert"] > 1
            number = row["part"][-1]
            wanted = (f"task{number}", f"1-{row['expert']}") if dense else (f"linear{number}", str(row["expert"]))
            right &= (row["what"], row["reads"]) == wanted
    return sum(row["parameters"] for row in rows), right


def parts_of_blocks(evidence: Evidence) -> list[Judgement]:
    """Figure 5: what DNE has more than IA is two task attention blocks in place of two linear layers, to the last
    parameter."""
    finished = [r for r in evidence.records if r.finished and r.method in (IA.name, DNE.name) and r.params.get("total")]
    by: dict[str, dict[str, Record]] = {}
    for record in finished:
        key = json.dumps([record.dataset, record.tasks, record.heads, record.network], sort_keys=True)
        by.setdefault(key, {}).setdefault(record.method, record)
    found: dict[str, Judgement] = {}
    for pair in by.values():
        if len(pair) == 2 and len(pair[DNE.name].heads) > 1:
            (dne, as_dne), (ia, as_ia) = block_parts(pair[DNE.name]), block_parts(pair[IA.name])
            more = pair[DNE.name].params["total"] - pair[IA.name].params["total"]
            on = f"{pair[DNE.name].dataset}, {tasks_text(pair[DNE.name].tasks)}"
            text = f"DNE - IA: {more:,} parameters, drawn {dne - ia:,}"
            found.setdefault(f"{on}: {text}", _judged(on, as_dne and as_ia and dne - ia == more, [text]))
    return list(found.values())
