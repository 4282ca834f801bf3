"""Ablation: what is removed and how, against plain loops; what it leaves as it was; what it says of bad input."""

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import reference
import tiny
import torch
from reference import Query
from torch import Tensor, nn

import dne_lab as lab
from dne_lab.analysis.ablation import Ablation
from dne_lab.analysis.probe import ImageBatch, probe
from dne_lab.analysis.removal import HOW, Intervention, Means, removal
from dne_lab.analysis.sweep import SharedPass
from dne_lab.core.errors import LabError
from dne_lab.data.stream import Batch
from dne_lab.models.attention import AttentionWeights
from dne_lab.models.expandable import ExpandableViT
from dne_lab.models.variants import DNE, IA, STA, Variant

HEADS = (3, 1, 2, 1)
BOTH = Variant("both", "all", "task")
QUIET: dict[str, Any] = {"progress": False}


def batch(count: int, classes: int = 8) -> Batch:
    return Batch(tiny.images(count), torch.arange(count) % classes, torch.arange(count))


def keys_of(model: ExpandableViT, query: Query, shape: tuple[int, ...]) -> Iterator[tuple[Any, int, int, int]]:
    """Place in a row, and the key there: expert, head, patch (-1: a class token)."""
    tokens = model.network.readout == "cls_token"
    seen = [(t, h) for t, count in enumerate(model.heads, 1) for h in range(count) if t <= query.expert]
    patches = [*range(-1 if tokens else 0, model.grid[0] * model.grid[1])]
    if query.kind in ("task1", "task2"):
        yield from ((place, t, h, query_patch(model, query)) for place, (t, h) in enumerate(seen))
    elif query.kind == "joint":
        pairs = itertools.product(enumerate(seen), enumerate(patches))
        yield from (((i, j), t, h, patch) for (i, (t, h)), (j, patch) in pairs)
    elif query.kind == "class" and model.variant.joint and query.expert > 1:
        flat = [(query.expert, query.head, -1), *((t, h, p) for t, h in seen for p in patches)]
        yield from ((place, *key) for place, key in enumerate(flat))
    else:
        own = patches if query.kind == "spatial" else [-1, *patches]
        yield from ((place, query.expert, query.head, patch) for place, patch in enumerate(own))


def query_patch(model: ExpandableViT, query: Query) -> int:
    """The patch of a query, or -1: behind class attention, and in front with cls_token, a class token looks."""
    if model.network.readout == "cls_token":
        return query.position - 1
    return -1 if query.layer == model.network.depth - 1 else query.position


def group_of(model: ExpandableViT, query: Query, expert: int, head: int, patch: int) -> str:
    """By the letter of the definition."""
    if query_patch(model, query) == -1 or query.kind == "class":
        return "none"
    if patch == -1:
        return "class"
    name = "SP" if patch == query_patch(model, query) else "DP"
    return name + ("SH" if (expert, head) == (query.expert, query.head) else "DH")


Gone = Callable[[Query, int, int, int], bool]


def by_hand(model: ExpandableViT, images: Tensor, gone: Gone, how: str) -> tuple[Any, Any, int]:
    """Logits and read-outs of the network as plain loops, with attention removed entry by entry; rows left empty."""
    intact: dict[Query, Any] = {}
    if how == "mean":
        reference.forward(model, images, lambda query, row: intact.setdefault(query, row.copy()))
    empty = 0

    def cut(query: Query, row: Any) -> Any:
        nonlocal empty
        new, touched = np.array(row), False
        for place, expert, head, patch in keys_of(model, query, np.shape(row)):
            if gone(query, expert, head, patch):
                touched = True
                new[place] = 0.0
                if how == "mean":
                    rows = [intact[query._replace(image=image)] for image in range(len(images))]
                    new[place] = sum(r[place] for r in rows) / len(rows)
        if how == "mask" and touched:
            left = new.sum()
            empty += left == 0
            new = new / left if left else new
        return new

    found = reference.forward(model, images, cut)
    return found.logits, found.readouts, empty


CASES: list[tuple[Variant, dict[str, Any], Callable[[ExpandableViT], Gone]]] = [
    (STA, {"group": ("SPDH", "DPDH")}, lambda m: lambda q, t, h, p: group_of(m, q, t, h, p) in ("SPDH", "DPDH")),
    (STA, {"group": "SPSH", "kind": "joint", "expert": 3},
     lambda m: lambda q, t, h, p: (q.kind, q.expert) == ("joint", 3) and group_of(m, q, t, h, p) == "SPSH"),
    (STA, {"reads": "others"}, lambda m: lambda q, t, h, p: t != q.expert),
    (DNE, {"reads": "between"}, lambda m: lambda q, t, h, p: 1 < t < q.expert),
    (DNE, {"kind": "task1", "layer": 0, "expert": (2, 4), "reads": 1},
     lambda m: lambda q, t, h, p: q.kind == "task1" and q.layer == 0 and q.expert in (2, 4) and t == 1),
    (DNE, {"group": "SPDH"}, lambda m: lambda q, t, h, p: group_of(m, q, t, h, p) == "SPDH"),
    (BOTH, {"expert": 3, "head": 1, "reads": 1, "key_head": (0, 2)},
     lambda m: lambda q, t, h, p: (q.expert, q.head) == (3, 1) and t == 1 and h in (0, 2)),
    (IA, {"group": "DPSH", "expert": (1, 3)},
     lambda m: lambda q, t, h, p: q.expert in (1, 3) and group_of(m, q, t, h, p) == "DPSH"),
]  # fmt: skip


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
@pytest.mark.parametrize(("variant", "choice", "gone"), CASES, ids=[f"{v.name}-{[*c]}" for v, c, _ in CASES])
def test_removal_is_that_of_plain_loops(
    variant: Variant, choice: dict[str, Any], gone: Callable[[ExpandableViT], Gone], style: dict[str, Any], how: str
) -> None:
    model = tiny.model(variant, HEADS, **style).double()
    images = tiny.images(2)
    found = lab.ablate(model, images, how=how, groups=False, **choice, **QUIET)
    logits, readouts, empty = by_hand(model, images, gone(model), how)
    after = model_after(model, images, found)
    assert tiny.difference(after, logits) < 1e-10
    assert tiny.difference(found.after, logits) < 1e-6 and found.empty_rows == empty
    intact = reference.forward(model, images)
    assert tiny.difference(found.before, intact.logits) < 1e-6
    assert tiny.difference(logits, intact.logits) > 1e-6  # something was removed
    old = min(found.removal.experts) - 1
    assert all(np.array_equal(a, b) for a, b in zip(readouts[:old], intact.readouts, strict=False))


def model_after(model: ExpandableViT, images: Tensor, found: Ablation) -> Tensor:
    """The ablated logits in the network's own type."""
    means = Means(found.removal.masks)
    with probe(model, keep=False, read=means.read), torch.no_grad():
        model(images)
    means.count(len(images))
    intervention = Intervention(found.removal, found.how, means)
    with warnings.catch_warnings(), probe(model, keep=False, replace=intervention), torch.no_grad():
        warnings.simplefilter("ignore")
        return model(images).logits


@pytest.mark.parametrize("variant", [STA, DNE], ids=tiny.names)
def test_mask_under_a_plain_softmax_is_masking_the_scores(variant: Variant) -> None:
    model = tiny.model(variant, HEADS, **tiny.PAPER).double()
    images = tiny.images(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = lab.ablate(model, images, reads=1, expert=(2, 3, 4), how="mask", groups=False, **QUIET)

    def masked(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        scores, axes, *rest = inputs
        if axes.kind == "spatial":
            return inputs
        places = torch.tensor(axes.key_expert) == 1
        shape = (1, 1, 1, -1, 1) if axes.kind == "joint" else (1, 1, 1, -1)
        return (scores.masked_fill(places.view(shape), float("-inf")), axes, *rest)

    hooks = [m.register_forward_pre_hook(masked) for m in model.modules() if isinstance(m, AttentionWeights)]
    with torch.no_grad():
        logits = model(images).logits
    for hook in hooks:
        hook.remove()
    assert tiny.difference(model_after(model, images, found), logits) < 1e-10


def test_sta_that_reads_no_other_expert_is_ia() -> None:
    model = tiny.model(STA, (1, 1, 1, 1), **tiny.PAPER)
    own = tiny.model(IA, (1, 1, 1, 1), **tiny.PAPER)
    own.load_state_dict(model.state_dict())
    found = lab.ablate(model, tiny.images(4), reads="others", how="mask", **QUIET)
    with torch.no_grad():
        assert tiny.difference(found.after, own(tiny.images(4)).logits) < 1e-5


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
@pytest.mark.parametrize("variant", [IA, STA, DNE, BOTH], ids=tiny.names)
def test_old_experts_stay_the_same_to_the_last_bit(variant: Variant, style: dict[str, Any], how: str) -> None:
    model = tiny.model(variant, (3, 1, 2, 1, 1, 2), **style)
    for expert, groups in ((4, True), (6, False)):
        found = lab.ablate(model, batch(7), expert=expert, how=how, groups=groups, batch_size=3, replicates=2, **QUIET)
        assert found.old_readouts_identical is True and found.change.abs().max() > 0
    # the classifier gives old experts' columns of new classes weight, but not new experts' columns of old classes
    assert lab.ablate(model, batch(3), expert=1, groups=False, **QUIET).old_readouts_identical is None


def test_a_difference_of_one_bit_is_told() -> None:
    model = tiny.model(DNE, HEADS)
    found = Ablation("zero", removal(model, expert=3), model.task_classes)
    with torch.no_grad():
        one, other = (model(tiny.images(2)) for _ in range(2))
    some = ImageBatch(tiny.images(2), torch.arange(2), None)
    found.add(some, one, other)
    assert found.old_readouts_identical is True
    other.readouts[1][0, 0] = torch.nextafter(other.readouts[1][0, 0], torch.tensor(9.0))
    found.add(some, one, other)
    assert found.old_readouts_identical is False


@pytest.mark.parametrize(("variant", "group"), [(STA, ("SPDH", "DPDH")), (STA, "SPSH"), (DNE, "SPDH"), (IA, "DPSH")])
def test_the_removed_group_has_no_mass_left(variant: Variant, group: Any) -> None:
    model = tiny.model(variant, HEADS, depth=3, **tiny.AUTHORS)
    labels = [group] if isinstance(group, str) else [*group]
    for how in ("zero", "mask"):
        found = lab.ablate(model, batch(5), group=group, how=how, **QUIET)
        assert found.groups_before is not None and found.groups_after is not None
        before, after = found.groups_before.table(), found.groups_after.table()
        assert before.equals(lab.attention_groups(model, batch(5), **QUIET).table())
        gone = after[after["group"].isin(labels)]
        assert len(gone) and (gone["share %"] == 0).all()
        left = after.groupby(["kind", "scope"])["share %"].sum()
        if how == "mask":
            assert np.allclose(left, 100, atol=1e-4)
        lost = before[before["group"].isin(labels)]["share %"].sum()
        assert lost > 1 and found.mass > 1
    mean = lab.ablate(model, batch(5), group=group, how="mean", **QUIET)
    assert mean.groups_after is not None and mean.groups_before is not None
    first = [
        table[table["layer"] == 0] for table in (g.table("layer") for g in (mean.groups_before, mean.groups_after))
    ]
    # a data-set mean keeps the mass of a first layer: what it looks at has not changed yet
    same = [t[t["kind"].isin(["spatial", "joint", "task1"])]["share %"].to_numpy() for t in first]
    assert np.allclose(*same, atol=1e-3)


def test_the_mass_is_that_of_the_touched_rows() -> None:
    model, some = tiny.model(STA, HEADS, **tiny.AUTHORS), batch(4)
    found = lab.ablate(model, some, kind="joint", layer=0, group="DPDH", how="zero", groups=False, **QUIET)
    groups = lab.attention_groups(model, some, kind="joint", layer=0, **QUIET)
    assert found.mass == pytest.approx(groups.share("DPDH").value, abs=1e-4)


def test_any_labelling_can_be_removed() -> None:
    model, some = tiny.model(STA, HEADS, **tiny.AUTHORS), batch(4)
    far = lab.ablate(model, some, group=("ring 1", "ring 2"), labelling="rings", how="mask", **QUIET)
    assert far.groups_after is not None and far.groups_after.labels[:2] == ("ring 0", "ring 1")
    shares = far.groups_after.table().set_index(["kind", "group"])["share %"]
    assert shares["joint"]["ring 0"] == pytest.approx(100, abs=1e-4)
    corner = lab.Labelling("corner", ("corner", "rest"), lambda p: (p.key_patch > 0).astype(int))
    mine = lab.ablate(model, some, kind="joint", group="corner", labelling=corner, how="zero", groups=False, **QUIET)
    assert mine.what.startswith("corner in joint")
    tokens = tiny.model(STA, HEADS, **tiny.PAPER)
    cls = lab.ablate(tokens, some, kind="joint", group="class", groups=False, **QUIET)
    mask = cls.removal.masks["joint", 0, 2]
    assert mask[:, 1:, :, 0].all() and mask.sum() == mask[:, 1:, :, 0].sum()  # patches' view of class tokens
    seen = lab.ablate(tokens, some, group="patches", labelling="class_token", groups=False, **QUIET)
    assert seen.removal.masks["joint", 0, 2][:, 0, :, 1:].all() and not seen.removal.masks["joint", 0, 2][:, 1:].any()


def test_rows_left_empty_stay_zero_and_are_counted() -> None:
    model = tiny.model(DNE, HEADS, **tiny.AUTHORS)
    kinds: dict[str, Any] = {"kind": "task2", "layer": 0, "expert": 3}
    emptied = lab.ablate(model, batch(3), **kinds, how="mask", groups=False, **QUIET)
    zeroed = lab.ablate(model, batch(3), **kinds, how="zero", groups=False, **QUIET)
    patches = model.grid[0] * model.grid[1]
    assert emptied.empty_rows == 3 * patches * 2 and zeroed.empty_rows == 0  # two heads
    assert torch.equal(emptied.after, zeroed.after) and emptied.after.isfinite().all()
    assert f"{3 * patches * 2} rows left empty" in repr(emptied) and emptied.mass == pytest.approx(100)


def test_the_mean_does_not_depend_on_batches() -> None:
    model = tiny.model(STA, HEADS, **tiny.AUTHORS)
    whole, parts = (
        lab.ablate(model, batch(9), group="DPDH", how="mean", batch_size=size, groups=False, **QUIET) for size in (9, 2)
    )
    assert tiny.difference(parts.after, whole.after) < 1e-5
    one = lab.ablate(model, batch(1), group="DPDH", how="mean", groups=False, **QUIET)
    assert tiny.difference(one.after, one.before) < 1e-5  # the mean of one image is that image


# What is told --------------------------------------------------------------------------------------------------------


def test_accuracies_are_those_of_counting() -> None:
    model = tiny.model(DNE, HEADS, **tiny.AUTHORS)
    assert model.task_classes == (2, 2, 2, 2)
    found = lab.ablate(model, batch(40), reads="others", groups=False, batch_size=7, **QUIET)
    assert found.before.shape == found.after.shape == found.change.shape == (40, 8)
    assert torch.equal(found.change, found.after - found.before) and torch.equal(found.index, torch.arange(40))
    table = found.table().set_index("task")
    assert [*table.index] == ["all", 1, 2, 3, 4]
    assert found.labels is not None
    for task in ("all", 1, 2, 3, 4):
        rows = [i for i in range(40) if task == "all" or int(found.labels[i]) // 2 + 1 == task]
        was, now = ([int(x[i].argmax()) == int(found.labels[i]) for i in rows] for x in (found.before, found.after))
        assert table.loc[task, "images"] == len(rows)
        assert table.loc[task, "before %"] == pytest.approx(100 * sum(was) / len(rows))
        assert table.loc[task, "after %"] == pytest.approx(100 * sum(now) / len(rows))
        differences = [100.0 * (a - b) for a, b in zip(was, now, strict=True)]
        assert table.loc[task, "loss"] == pytest.approx(np.mean(differences))
        assert table.loc[task, "+-"] == pytest.approx(1.96 * np.std(differences) / len(rows) ** 0.5)
        moved = [int(found.before[i].argmax()) != int(found.after[i].argmax()) for i in rows]
        assert table.loc[task, "changed %"] == pytest.approx(100 * np.mean(moved))
        mean = float(found.change[rows].abs().double().mean())
        assert table.loc[task, "mean |logit change|"] == pytest.approx(mean, rel=1e-5)
    assert "mean: all keys of other experts in task1 (layers 0, 1" in repr(found)


def test_mask_in_task_attention_warns() -> None:
    model = tiny.model(DNE, HEADS)
    for call in (lab.ablate, lab.ablation_sweep):
        with pytest.warns(UserWarning, match="mask multiplies what is left of task attention") as seen:
            found = call(model, batch(4), kind="task1", expert=3, how="mask", **QUIET)
        assert seen[0].filename == __file__  # the line of whoever called
    assert isinstance(
        lab.ablate(model, batch(4), expert=3, kind="spatial", group="DPSH", how="mask", **QUIET), Ablation
    )
    found = lab.ablate(model, batch(4), kind="task1", expert=3, reads=1, how="zero", groups=False, **QUIET)
    assert not found.warning and "Beware" not in repr(found)
    with pytest.warns(UserWarning):
        found = lab.ablate(model, batch(4), kind="task1", expert=3, reads=1, how="mask", groups=False, **QUIET)
    assert f"Beware: {found.warning}" in repr(found)


def test_without_labels_there_are_no_accuracies() -> None:
    model = tiny.model(DNE, HEADS)
    found = lab.ablate(model, tiny.images(5), reads=2, groups=False, **QUIET)
    assert found.labels is None and [*found.table()] == ["task", "images", "changed %", "mean |logit change|"]
    mixed = lab.ablate(model, [batch(3), tiny.images(2)], reads=2, groups=False, **QUIET)
    assert mixed.labels is None and mixed.table()["images"].tolist() == [5]


def test_images_of_unknown_classes_count_for_no_accuracy() -> None:
    model = tiny.model(DNE, HEADS)
    found = lab.ablate(model, batch(12, classes=12), reads=2, groups=False, **QUIET)  # ranks 8 to 11 are unknown
    table = found.table().set_index("task")
    assert table.loc["all", "images"] == 8 and len(found.before) == 12


def test_the_network_is_as_it_was() -> None:
    model = tiny.model(STA, HEADS).train()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # rows that do not sum to 1 are asked for here
        for how in HOW:
            lab.ablate(model, batch(4), group="DPDH", how=how, **QUIET)
    assert [m.training for m in model.modules()] == modes and not hooks(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def hooks(model: nn.Module) -> list[Any]:
    names = ("_forward_hooks", "_forward_pre_hooks")
    only = [number for part in model.modules() if isinstance(part, AttentionWeights) for number in part.only]
    return only + [hook for part in model.modules() for name in names for hook in getattr(part, name).items()]


BAD: list[tuple[Variant, dict[str, Any], str]] = [
    (STA, {}, "nothing is selected. Name what to remove: kind, layer"),
    (STA, {"group": "SPDX"}, "unknown group of labelling 'groups' 'SPDX'. Did you mean"),
    (STA, {"group": []}, "selects nothing"),
    (STA, {"group": "ring 1"}, "Allowed: DPDH, DPSH, SPDH, SPSH, class"),
    (STA, {"kind": "spatial", "group": "SPDH"}, "no SPDH in spatial attention .* finds there spatial: SPSH, DPSH"),
    (DNE, {"group": "DPDH"}, "no DPDH among .* spatial: SPSH, DPSH; task1: SPSH, SPDH; task2: SPSH, SPDH"),
    (DNE, {"kind": ("spatial", "task1"), "group": "SPDH"}, "no SPDH in spatial attention"),
    (DNE, {"kind": "class", "group": "SPSH"}, "no SPSH in class attention .* finds there no row at all"),
    (DNE, {"kind": "joint"}, "kind of attention in dne 'joint'"),
    (DNE, {"expert": 7, "reads": 1}, "expert 7: this network has experts 1-4"),
    (DNE, {"expert": 2, "reads": 5}, "reads = 5: must be whole numbers from 1 to 4"),
    (DNE, {"expert": 2, "reads": True}, "reads = True: must be whole numbers"),
    (DNE, {"expert": 2, "reads": "old"}, "unknown reads 'old'"),
    (DNE, {"expert": 2, "reads": "between"}, r"\(keys of experts between the first and the reader\)"),
    (DNE, {"expert": 2, "reads": 3}, r"no such entries \(keys of experts 3\).* others only in: task1, task2"),
    (IA, {"reads": "others"}, r"keys of other experts.* others only in: none"),
    (DNE, {"reads": 2, "key_head": 2}, "no such entries"),
    (DNE, {"reads": 2, "key_head": 3}, "key_head = 3: must be whole numbers from 0 to 2"),
    (DNE, {"reads": 2, "how": "remove"}, "unknown how 'remove'. Allowed: mask, mean, zero"),
    (DNE, {"reads": 2, "labelling": "ring"}, "unknown labelling 'ring'. Did you mean rings"),
    (DNE, {"reads": 2, "images": torch.zeros(0, 3, 8, 12, dtype=torch.uint8)}, "the data set is empty"),
    (DNE, {"reads": 2, "images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, r"shape \(B, 3, 8, 12\)"),
    (DNE, {"reads": 2, "how": "mean", "images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, r"\(B, 3, 8, 12\)"),
    (DNE, {"reads": 2, "how": "mean", "images": iter([tiny.images(2)])}, "can be read once: give them as a list"),
    (DNE, {"reads": 2, "batch_size": 0}, "batch_size = 0"),
]  # fmt: skip


@pytest.mark.parametrize(("variant", "choice", "message"), BAD, ids=[m[:30] for _, _, m in BAD])
def test_bad_input_is_told_and_leaves_no_hook(variant: Variant, choice: dict[str, Any], message: str) -> None:
    model = tiny.model(variant, HEADS, **tiny.AUTHORS)
    with pytest.raises(LabError, match=message):
        lab.ablate(model, **{"images": tiny.images(2), **QUIET, **choice})
    assert not hooks(model)


def test_a_labelling_that_fails_in_the_middle_leaves_no_hook() -> None:
    model, calls = tiny.model(STA, HEADS), []

    def places(pairs: Any) -> Any:
        calls.append(pairs)
        if len(calls) > 8:
            raise RuntimeError("half way")
        return pairs.key_patch * 0

    with pytest.raises(RuntimeError, match="half way"):
        lab.ablate(model, batch(2), group="one", labelling=lab.Labelling("mine", ("one",), places), **QUIET)
    assert not hooks(model)


def test_models_without_experts_are_refused() -> None:
    with pytest.raises(LabError, match="no attention"):
        lab.ablate(nn.Linear(2, 2), tiny.images(1), reads=1)
    with pytest.raises(LabError, match="no expert yet"):
        lab.ablate(tiny.model(DNE, ()), tiny.images(1), reads=1)


# Sweeps --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
@pytest.mark.parametrize("variant", [*tiny.PUBLISHED, BOTH], ids=tiny.names)
def test_a_pass_that_goes_on_from_the_middle_is_the_whole_pass(variant: Variant, style: dict[str, Any]) -> None:
    model, images = tiny.model(variant, (3, 1, 2, 1, 1, 2), depth=3, **style), tiny.images(3)
    with torch.no_grad():
        whole, again = model.readouts(images), SharedPass(model, images)
        for readouts in (again.readouts, *(again.from_(t, layer) for t in range(6, 0, -1) for layer in (2, 0, 1))):
            assert all(torch.equal(a, b) for a, b in zip(whole, readouts, strict=True))
        with pytest.raises(ValueError, match="from the newest expert down"):
            again.from_(6, 0)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("variant", [STA, DNE], ids=tiny.names)
def test_a_sweep_is_one_ablation_a_connection(variant: Variant, how: str) -> None:
    model, some = tiny.model(variant, HEADS, depth=3, **tiny.AUTHORS), batch(10)
    sweep = lab.ablation_sweep(model, some, how=how, batch_size=4, **QUIET)
    kinds = {"sta": ["joint", "class"], "dne": ["task1", "task2"]}[variant.name]
    places = {"sta": [("joint", 0), ("joint", 1), ("class", 2)]}.get(
        variant.name, [(k, i) for k in ("task1", "task2") for i in range(3)]
    )
    pairs = [(t, j) for t in (2, 3, 4) for j in range(1, t + 1)]
    wanted = [(*place, *pair) for place in [*places, ("all", "all")] for pair in pairs]
    table = sweep.table()
    assert sorted(map(str, zip(*(table[c] for c in ("kind", "layer", "expert", "reads")), strict=True))) == sorted(
        map(str, wanted)
    )
    assert sweep.how == how and sweep.images == 10
    for row in table.iloc[:: 5 if how == "mask" else 11].to_dict("records"):
        where = {"kind": kinds} if row["kind"] == "all" else {"kind": row["kind"], "layer": row["layer"]}
        one = lab.ablate(
            model, some, expert=row["expert"], reads=row["reads"], how=how, groups=False, **where, **QUIET
        )  # fmt: skip
        every = one.table().set_index("task")
        assert row["loss"] == pytest.approx(every.loc["all", "loss"])
        assert row["own loss"] == pytest.approx(every.loc[row["expert"], "loss"])
        assert row["mass %"] == pytest.approx(one.mass, abs=1e-3)
        change = every.loc["all", "mean |logit change|"]
        assert row["mean |logit change|"] == pytest.approx(change, rel=1e-3, abs=1e-7) and change > 0
    matrix = sweep.matrix(of="mean |logit change|")
    assert [*matrix.index] == [2, 3, 4] and [*matrix.columns] == [1, 2, 3, 4]
    assert np.isnan(matrix.loc[2, 3]) and matrix.loc[4, 4] > 0
    assert not hooks(model)


def test_a_sweep_can_be_narrowed() -> None:
    model, some = tiny.model(DNE, HEADS, **tiny.AUTHORS), batch(6)
    sweep = lab.ablation_sweep(model, some, kind="task2", layer=0, expert=(2, 4), own=False, **QUIET)
    rows = sweep.table()[["kind", "layer", "expert", "reads"]].to_numpy().tolist()
    assert rows == [["task2", 0, t, j] for t in (2, 4) for j in range(1, t)]
    with pytest.raises(LabError, match=r"nothing of kind 'all', layer 'all'. It has \(kind, layer\): task2 0"):
        sweep.matrix()
    with pytest.raises(LabError, match="unknown value of a sweep 'lost'"):
        sweep.matrix("task2", 0, "lost")
    assert "Sweep(mean, 6 images)" in repr(sweep)


@pytest.mark.parametrize(
    ("variant", "choice", "message"),
    [
        (IA, {}, "no connection between experts is selected.*: none"),
        (DNE, {"kind": "spatial"}, "no connection between experts is selected.*: task1, task2"),
        (DNE, {"how": "cut"}, "unknown how 'cut'"),
        (DNE, {"images": tiny.images(3)}, "these images have no labels: give a Batch"),
        (DNE, {"images": iter([batch(3)])}, "can be read once"),
        (DNE, {"images": Batch(tiny.images(2), torch.tensor([8, 9]), torch.arange(2))}, r"\(ranks 0 to 7\)"),
        (DNE, {"images": Batch(tiny.images(0), torch.zeros(0), torch.zeros(0))}, "the data set is empty"),
    ],
)
def test_a_sweep_says_what_is_wrong(variant: Variant, choice: dict[str, Any], message: str) -> None:
    model = tiny.model(variant, HEADS, **tiny.AUTHORS)
    with pytest.raises(LabError, match=message):
        lab.ablation_sweep(model, **{"images": batch(3), **QUIET, **choice})
    assert not hooks(model)
