"""Statements of the paper's drawings are judged by what networks read and hold: a wrong record contradicts them."""

import dataclasses
from typing import Any

import pytest
import tiny
import torch
from invented import record

from dne_lab.analysis.attention_groups import attention_groups
from dne_lab.analysis.decomposition import TRAINED, Decomposition, plain
from dne_lab.claims import drawings
from dne_lab.claims.evidence import AGREES, CONTRADICTS, Evidence
from dne_lab.measure.record import Record
from dne_lab.models.variants import DNE, IA, STA, Variant

HEADS = (3, 1, 2)


def measured(variant: Variant, seed: int = 0, of: Variant | None = None, **changes: Any) -> Decomposition:
    """A record of ``variant`` whose attention was measured on a random network of ``of`` (default: the same)."""
    model = tiny.model(of or variant, HEADS, seed=seed)
    settings = dataclasses.asdict(model.network)
    images = tiny.images(3)
    moments = {TRAINED: attention_groups(model, images, progress=False).to_dict()}
    flow = {}
    if (of or variant) != IA:
        flow = plain(attention_groups(model, images, labelling="experts", replicates=0, progress=False).flow())
    return Decomposition(
        run=f"{variant.name}-s{seed}", method=variant.name, preset="tiny", dataset="digits", seed=seed, epochs=1,
        tasks=[4, 4, 2], heads=list(HEADS), network=settings, LA=50.0, finished=True, images=3, config_sha256="0",
        code_version="0", torch="0", **{"moments": moments, "flow": flow, **changes},
    )  # fmt: skip


def test_what_is_drawn_is_what_is_read() -> None:
    found = [measured(variant, seed) for variant in (IA, STA, DNE) for seed in (0, 1)]
    (one,) = drawings.who_reads_whom(Evidence(attention=found))
    assert one.outcome == AGREES and one.on == "digits, 4 + 4 + 2" and not one.small_scale
    told = one.found.split("; ")
    assert told[0] == "IA: 0 connections between experts drawn, 0 read, 2 seeds"
    blocks = len({line[:2] for line in drawings.lines_read(found[2])})  # of joint attention of patches
    assert told[1] == f"STA: {3 * blocks} connections between experts drawn, {3 * blocks} read, 2 seeds"
    assert told[2].startswith("DNE: ") and len(told) == 3
    # The lines are those of the figure.
    assert drawings.lines_drawn(found[0]) == set()
    assert {line[2:] for line in drawings.lines_drawn(found[4])} == {(2, 1), (3, 1), (3, 2)}


@pytest.mark.parametrize(("variant", "of"), [(IA, STA), (STA, IA), (STA, DNE), (DNE, STA)])
def test_a_network_that_reads_otherwise_contradicts(variant: Variant, of: Variant) -> None:
    (one,) = drawings.who_reads_whom(Evidence(attention=[measured(variant, of=of)]))
    assert one.outcome == CONTRADICTS


def test_one_connection_too_many_or_too_few_contradicts() -> None:
    honest = measured(STA)
    for place, value in ((3, 0.0), (5, 1.0)):  # expert 2 reads not expert 1, or reads expert 3
        rows = [list(row) for row in honest.flow["rows"]]
        row = next(r for r in rows if r[2] == 2)
        row[place] = value
        flow = {"columns": honest.flow["columns"], "rows": rows}
        (one,) = drawings.who_reads_whom(Evidence(attention=[dataclasses.replace(honest, flow=flow)]))
        assert one.outcome == CONTRADICTS and ("1 not read" in one.found or "1 not drawn" in one.found)


def test_keys_are_counted_as_figure_3_draws_them() -> None:
    honest = [measured(IA), measured(STA)]
    (one,) = drawings.kinds_of_key(Evidence(attention=honest))
    patches = tiny.model(STA, HEADS).grid[0] * tiny.model(STA, HEADS).grid[1]
    assert one.outcome == AGREES
    assert one.found == (
        f"IA, expert 3: 1 SPSH, 0 SPDH, {patches - 1} DPSH, 0 DPDH, one seed; "
        f"STA, expert 3: 1 SPSH, 5 SPDH, {patches - 1} DPSH, {5 * (patches - 1)} DPDH, one seed"
    )
    for variant, of in ((IA, STA), (STA, IA)):
        (other,) = drawings.kinds_of_key(Evidence(attention=[measured(variant, of=of)]))
        assert other.outcome == CONTRADICTS
    assert drawings.kinds_of_key(Evidence(attention=[measured(DNE)])) == []


def pair(more: int = 0, **network: Any) -> list[Record]:
    """Records of IA and DNE with the parameters of random networks, DNE's with some more."""
    made = []
    for variant, extra in ((IA, 0), (DNE, more)):
        model = tiny.model(variant, HEADS, **network)
        total = sum(p.numel() for p in model.parameters()) + extra
        settings = dataclasses.asdict(model.network)
        made.append(record(variant.name, tasks=(4, 4, 2), heads=list(HEADS), params={"total": total}, network=settings))
    return made


def test_the_parameters_of_dne_are_those_of_the_blocks_drawn() -> None:
    (one,) = drawings.parts_of_blocks(Evidence(pair()))
    assert one.outcome == AGREES and one.found.startswith("DNE - IA: ")
    more, drawn = (int(words.split()[-1].replace(",", "")) for words in
                   (one.found.replace("DNE - IA: ", "").split(" parameters, drawn ")))  # fmt: skip
    assert more == drawn > 0
    (off,) = drawings.parts_of_blocks(Evidence(pair(more=1)))
    assert off.outcome == CONTRADICTS
    assert drawings.parts_of_blocks(Evidence(pair()[:1])) == []


def test_rebuilding_leaves_chance_alone() -> None:
    given = pair()[0]
    drawings._built.cache_clear()
    before = torch.random.get_rng_state()
    assert drawings.rebuilt(given).heads == HEADS
    assert torch.equal(before, torch.random.get_rng_state())
