"""Which attention gives rows for a labelling: what `attention_groups` listens to."""

from dne_lab.analysis.hosts.base import POSITION, Entry, Host
from dne_lab.analysis.labelling import Labelling
from dne_lab.analysis.null import ACROSS
from dne_lab.analysis.probe_selection import Names, Numbers, describe, select
from dne_lab.errors import LabError
from dne_lab.models.attention import CLASS, JOINT, SPATIAL, TASK1, TASK2


def choose(
    host: Host,
    kind: Names,
    layer: Numbers,
    expert: Numbers,
    head: Numbers,
    labelling: Labelling,
    part: str,
    shuffled: bool,
) -> tuple[list[str], list[int]]:
    """The kinds and layers, of those that were given (None: all), that give rows.

    Raises:
        LabError: a choice that matches no point, or a kind or layer that was asked for and gives no row.
    """
    left = select(host, kind, layer, expert, head)
    why = {e: _no_row(host.entries, e, labelling, part, shuffled) for e in left}
    good = [e for e, reason in why.items() if reason is None]
    for column, given in enumerate((kind, layer)):
        seen = {e[column] for e in good}
        bare = [e for e in left if e[column] not in seen]
        if bare and (given is not None or not good):
            raise LabError(f"{describe(bare)}: no row to count, because {why[bare[0]]}.")
    return list(dict.fromkeys(e[0] for e in good)), sorted({e[1] for e in good})


def _no_row(there: list[Entry], entry: Entry, labelling: Labelling, part: str, shuffled: bool) -> str | None:
    """Why this attention gives no row; None if it does."""
    kind, layer = entry[:2]
    patchwise = kind in (SPATIAL, JOINT)
    if shuffled and kind not in ACROSS:
        return f"shuffled looks where experts read each other's patches ({', '.join(ACROSS)})"
    if part == POSITION and not patchwise:
        return f"part = {POSITION!r} is of attention between patches alone ({SPATIAL}, {JOINT})"
    if labelling.class_queries and part == POSITION:
        return f"class tokens look at content alone, without a part = {POSITION!r}"
    if labelling.class_queries:
        if kind == CLASS or (patchwise and all(e[0] != CLASS for e in there)):
            return None
        return (
            f"no class token looks at patches there, and labelling {labelling.name!r} counts the views of class tokens"
        )
    if any(e[:2] == (CLASS, layer) for e in there):
        return (
            f"only class tokens look there and labelling {labelling.name!r} counts the views of patches; "
            "labelling='class_token' shows what class tokens see"
        )
    return None


def kinds_with_rows(there: list[str], labelling: Labelling) -> list[str]:
    """Those of the kinds whose queries a labelling counts: views of class tokens, or of patches."""
    if labelling.class_queries:
        return [kind for kind in there if kind == CLASS or (CLASS not in there and kind not in (TASK1, TASK2))]
    return [kind for kind in there if kind != CLASS]
