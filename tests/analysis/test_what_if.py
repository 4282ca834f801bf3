"""What if: choices in the terms of `ablate`, an image's classes, and who does not move by a single bit."""

from typing import Any

import pytest
import tiny
import torch
from tiny import AUTHORS, PAPER

import dne_lab as lab
from dne_lab.analysis.ablation import Selection, accuracy, means_of, what_if
from dne_lab.analysis.removal import views_of
from dne_lab.core.errors import LabError
from dne_lab.data.stream import Batch
from dne_lab.models.variants import DNE, IA, STA, Variant

BOTH = Variant("both", "all", "task")
HEADS = (2, 1, 2)


def labelled(count: int = 12) -> Batch:
    return Batch(tiny.images(count), torch.arange(count) % 6, torch.arange(count))


@pytest.mark.parametrize("variant", [DNE, STA, BOTH], ids=tiny.names)
def test_only_who_reads_moves_and_the_others_keep_every_bit(variant: Variant) -> None:
    model, images = tiny.model(variant, HEADS, **AUTHORS), tiny.images(3)
    found = what_if(model, images, Selection(reads=1, expert=3))
    assert found.moved[:2] == [0.0, 0.0] and found.moved[2] > 1e-4 and "keys of expert 1" in found.what
    found = what_if(model, images, Selection(reads=1))
    assert found.moved[0] == 0.0 and min(found.moved[1:]) > 1e-4
    found = what_if(model, images, Selection(reads=2))  # expert 2 still reads itself
    assert found.moved[:2] == [0.0, 0.0] and found.moved[2] > 1e-4
    plain = model(images).logits
    assert tiny.difference(found.before, plain) < 1e-5 and tiny.difference(found.after, plain) > 1e-4
    assert not any(part._forward_hooks for part in model.modules())


def test_moved_is_the_largest_change_over_all_batches() -> None:
    model, images = tiny.model(DNE, HEADS), tiny.images(7)
    choice: Any = {"reads": 1, "expert": [2, 3], "how": "zero", "groups": False, "progress": False}
    whole, parts = (lab.ablate(model, images, **choice, batch_size=size) for size in (7, 2))
    assert parts.moved == pytest.approx(whole.moved, rel=1e-4) and whole.moved[0] == 0.0
    one = [lab.ablate(model, images[i : i + 1], **choice).moved for i in range(7)]
    assert [max(column) for column in zip(*one, strict=True)] == pytest.approx(whole.moved, rel=1e-4)


def test_nothing_off_changes_nothing() -> None:
    model = tiny.model(DNE, HEADS)
    for choice in (Selection(), Selection(kind="task1", expert=2, layer=0, how="zero")):
        found = what_if(model, tiny.images(2), choice)
        assert found.moved == [0.0, 0.0, 0.0] and torch.equal(found.before, found.after)
        assert found.what == "nothing is off"
        table = accuracy(model, labelled(), choice)
        assert table["before %"].tolist() == table["after %"].tolist() and table["task"].tolist() == ["all", 1, 2, 3]


def test_sta_that_reads_no_other_expert_attends_as_ia_does() -> None:
    """At k = 1 their parameters are the same, so masking other heads makes STA's later experts independent."""
    ia, sta = (tiny.model(v, (1, 1), **PAPER) for v in (IA, STA))
    sta.load_state_dict(ia.state_dict())
    images = tiny.images(2)
    found = what_if(sta, images, Selection(reads="others", kind="joint", how="mask"))
    assert tiny.difference(found.after, ia(images).logits) < 1e-5
    assert tiny.difference(found.before, ia(images).logits) > 1e-3


def test_the_mean_is_that_of_the_data_set() -> None:
    model, images = tiny.model(DNE, HEADS), tiny.images(9)
    choice = Selection(reads="others", kind="task1")
    alone = what_if(model, images[:1], choice)
    assert tiny.difference(alone.after, alone.before) < 1e-5  # the mean over one image is its own attention
    found = what_if(model, images[:1], choice, means=means_of(model, images))
    every = lab.ablate(model, images, reads="others", kind="task1", groups=False, progress=False)
    assert tiny.difference(found.after, every.after[:1]) < 1e-5
    assert tiny.difference(found.after, found.before) > 1e-4


def test_classes_are_the_best_before_and_after() -> None:
    found = what_if(tiny.model(DNE, HEADS), tiny.images(12), Selection(reads=1))
    table = found.classes(image=3, count=2)
    before, after = found.before[3].double(), found.after[3].double()
    assert set(table["class"]) == {*before.topk(2).indices.tolist(), *after.topk(2).indices.tolist()}
    assert table["logit before"].is_monotonic_decreasing
    first = int(table["class"][0])
    assert table["change"][0] == pytest.approx(float(after[first] - before[first]))
    assert table["softmax after"][0] == pytest.approx(float(after.softmax(0)[first]))


def test_accuracy_is_that_of_ablate() -> None:
    model, images = tiny.model(DNE, HEADS), labelled()
    table = accuracy(model, images, Selection(group=("SPDH",), kind="task1", how="zero"))
    wanted = lab.ablate(model, images, group="SPDH", kind="task1", how="zero", groups=False, progress=False).table()
    assert table.equals(wanted)


def test_views_found_before_give_the_same() -> None:
    model, images = tiny.model(STA, HEADS), tiny.images(2)
    views = views_of(model)
    one, other = (what_if(model, images, Selection(reads=1), found) for found in (None, views))
    assert torch.equal(one.after, other.after) and one.what == other.what


def test_a_model_in_training_is_looked_at_in_evaluation() -> None:
    model = tiny.model(DNE, HEADS, drop_path=0.5).train()
    one, other = (what_if(model, tiny.images(4), Selection(reads=1)) for _ in range(2))
    assert torch.equal(one.after, other.after) and model.training


def test_what_is_not_there_is_told() -> None:
    with pytest.raises(LabError, match=r"no later expert reads expert 3, the newest.*as read by expert 3 itself"):
        what_if(tiny.model(DNE, HEADS), tiny.images(1), Selection(reads=3))
    assert what_if(tiny.model(DNE, HEADS), tiny.images(1), Selection(reads=3, expert=3, how="zero")).moved[2] > 1e-4
    with pytest.raises(LabError, match=r"An expert reads itself and earlier experts only"):
        what_if(tiny.model(IA, HEADS), tiny.images(1), Selection(reads=1))
    with pytest.raises(LabError, match="task1"):
        what_if(tiny.model(IA, HEADS), tiny.images(1), Selection(reads=1, kind="task1"))
