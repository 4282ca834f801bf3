"""Connections switched off: which entries go, what is left, and who does not move by a single bit."""

import itertools
import warnings

import pytest
import tiny
import torch
from tiny import AUTHORS, PAPER
from torch import Tensor

from dne_lab.analysis.maps import AttentionMap
from dne_lab.analysis.probe import probe
from dne_lab.analysis.switches import Switch, what_if
from dne_lab.errors import LabError
from dne_lab.models.variants import DNE, IA, STA, Variant

BOTH = Variant("both", "all", "task")
HEADS = (2, 1, 2)
SWITCHES = [
    Switch(experts=(1,)),
    Switch(experts=(1, 2), readers=(3,), layers=(1,), how="zero"),
    Switch(experts=(3,), readers=(3,)),
    Switch(groups=("SPSH",), how="zero"),
    Switch(groups=("SPDH", "DPDH")),
    Switch(groups=("DPSH",), kinds=("joint", "spatial")),
    Switch(experts=(2,), groups=("SPSH",), kinds=("task2",)),
]


def maps_of(model, images: Tensor, switch: Switch | None) -> list[AttentionMap]:
    """All maps, as they are or with a switch."""
    kinds = [kind for kind in ("spatial", "joint", "task1", "task2") if kind != "joint" or model.variant.joint]
    kinds = [kind for kind in kinds if not kind.startswith("task") or model.variant.task1]
    with torch.no_grad(), warnings.catch_warnings(), probe(model, kinds, replace=switch and switch.apply) as maps:
        warnings.simplefilter("ignore")
        model(images)
    return list(maps)


def entries(part: AttentionMap):
    """(place of the entry, query (expert, head, patch), key (expert, head, patch)) of every entry; patch -1 = class."""
    a, names, shape = part.axes, part.axes.layout.split(), part.values.shape
    for place in itertools.product(*map(range, shape)):
        at = dict(zip(names, place, strict=True))
        query = (a.query_expert[at["h"]], a.query_head[at["h"]], at["p"] - a.classes)
        if "kh" in at:
            key = (a.key_expert[at["kh"]], a.key_head[at["kh"]], at.get("kp", at["p"]) - a.classes)
        else:
            key = (*query[:2], at["kp"] - a.classes)
        yield place, query, key


@pytest.mark.parametrize("style", [PAPER, AUTHORS], ids=tiny.names)
@pytest.mark.parametrize("variant", [DNE, STA, BOTH], ids=tiny.names)
def test_the_entries_that_go_are_those_of_plain_loops(style: dict, variant: Variant) -> None:
    model, images = tiny.model(variant, HEADS, **style), tiny.images(1)
    for switch in SWITCHES:
        for part in maps_of(model, images, None):
            off = switch.off(part.axes, part.values.shape[part.axes.layout.split().index("p")])
            off = off.expand(part.values.shape)
            left = part.values.clone()
            for place, query, key in entries(part):
                same = (query[0] == key[0] and query[1] == key[1], query[2] == key[2])
                group = {(True, True): "SPSH", (False, True): "SPDH", (True, False): "DPSH", (False, False): "DPDH"}[
                    same
                ]
                real = query[2] >= 0 and key[2] >= 0
                alone = switch.readers is not None and len(switch.readers) == 1
                wanted = (group in switch.groups and real) or (
                    key[0] in switch.experts and (key[0] < query[0] or alone)
                )
                assert bool(off[place]) == wanted, (switch, part, query, key)
                left[place] = 0 if wanted else left[place]
            after = switch.apply(part.values, part.axes)
            if switch.how == "zero":
                assert torch.equal(after, left)
            else:
                dims = (-1, -2) if "kh kp" in part.axes.layout else (-1,)
                sums = after.sum(dims)
                assert bool(((sums - 1).abs() < 1e-5).logical_or(sums == 0).all())
                assert torch.equal(after == 0, (left == 0))


@pytest.mark.parametrize("variant", [DNE, STA, BOTH], ids=tiny.names)
def test_only_who_reads_moves_and_the_others_keep_every_bit(variant: Variant) -> None:
    model, images = tiny.model(variant, HEADS, **AUTHORS), tiny.images(3)
    found = what_if(model, images, Switch(experts=(1,), readers=(3,)))
    assert found.moved[:2] == [0.0, 0.0] and found.moved[2] > 1e-4
    found = what_if(model, images, Switch(experts=(1,)))
    assert found.moved[0] == 0.0 and min(found.moved[1:]) > 1e-4
    plain = model(images).logits
    assert tiny.difference(found.before.logits, plain) < 1e-5 and tiny.difference(found.after.logits, plain) > 1e-4
    assert not any(part._forward_hooks for part in model.modules())


def test_nothing_off_changes_nothing() -> None:
    found = what_if(tiny.model(DNE, HEADS), tiny.images(2), Switch())
    assert found.moved == [0.0, 0.0, 0.0] and torch.equal(found.before.logits, found.after.logits)


def test_sta_without_foreign_keys_attends_as_ia_does() -> None:
    """At k = 1 their parameters are the same, so masking other heads makes STA's later experts independent."""
    ia, sta = (tiny.model(v, (1, 1), **PAPER) for v in (IA, STA))
    sta.load_state_dict(ia.state_dict())
    images = tiny.images(2)
    found = what_if(sta, images, Switch(experts=(1,), kinds=("joint",)))
    assert tiny.difference(found.after.logits, ia(images).logits) < 1e-5
    assert tiny.difference(found.before.logits, ia(images).logits) > 1e-3


def test_tables_of_classes_and_accuracy() -> None:
    model, images = tiny.model(DNE, HEADS, classes=2), tiny.images(12)
    labels = torch.arange(12) % 6
    found = what_if(model, images, Switch(experts=(1,)), labels)
    table = found.classes(image=3, count=2)
    before, after = found.before.logits[3].double(), found.after.logits[3].double()
    wanted = {*before.topk(2).indices.tolist(), *after.topk(2).indices.tolist()}
    assert set(table["class"]) == wanted and table["logit before"].is_monotonic_decreasing
    first = int(table["class"][0])
    assert table["change"][0] == pytest.approx(float(after[first] - before[first]))
    assert table["softmax after"][0] == pytest.approx(float(after.softmax(0)[first]))
    told = found.accuracy((2, 2, 2)).set_index("classes of")
    right = found.after.logits.argmax(1) == labels
    assert told.loc["all", "after %"] == pytest.approx(100 * right.double().mean().item())
    assert told.loc["task 2", "images"] == 4
    chosen = (labels == 2) | (labels == 3)
    assert told.loc["task 2", "after %"] == pytest.approx(100 * right[chosen].double().mean().item())
    assert what_if(model, images, Switch()).accuracy().empty


def test_wrong_names_and_places_are_told() -> None:
    with pytest.raises(
        LabError, match=r"unknown group 'SPHD'. Did you mean SPSH or SPDH.*Allowed: DPDH, DPSH, SPDH, SPSH"
    ):
        Switch(groups=("SPHD",))
    with pytest.raises(LabError, match=r"unknown way to switch off 'half'.*Allowed: mask, zero"):
        Switch(how="half")
    with pytest.raises(LabError, match="unknown kind 'task3'"):
        Switch(kinds=("task3",))
    with pytest.raises(LabError, match=r"ia has no attention at kind .'task1'"):
        what_if(tiny.model(IA, HEADS), tiny.images(1), Switch(experts=(1,), kinds=("task1",)))
