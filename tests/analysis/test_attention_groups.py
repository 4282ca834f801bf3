"""Attention groups of whole networks: brute force over the maps of a probe, bad input, and a network left as it was."""

import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import literal_groups
import numpy as np
import pytest
import tiny
import torch
from literal_groups import TOKEN, agree, close
from torch import Tensor, nn

import dne_lab as lab
from dne_lab.analysis.attention_groups import attention_groups
from dne_lab.analysis.group_tables import FIRST, LATER
from dne_lab.analysis.labelling import Labelling
from dne_lab.analysis.probe import probe
from dne_lab.analysis.row_statistics import Accumulator
from dne_lab.core.errors import LabError
from dne_lab.data.stream import Batch
from dne_lab.models.expandable import ExpandableViT
from dne_lab.models.variants import DNE, IA, STA, Variant

HEADS = (3, 1, 2, 1)
GRID = (2, 3)
BOTH = Variant("both", "all", "task")
look = functools.partial(attention_groups, progress=False)
quick = functools.partial(look, replicates=0)


def brute(model: ExpandableViT, images: Tensor, name: str = "groups", **choice: Any) -> dict[Any, dict[str, Any]]:
    """Groups by loops over every entry of every map that a probe reads."""
    literal, labels = literal_groups.labellings(model.heads, model.grid)[name]
    totals: dict[Any, dict[str, Any]] = {}
    with probe(model, dtype=torch.float64, **choice) as maps:
        model(images)
    for part in maps:
        rows = literal_groups.rows(part.values, part.axes)
        totals |= literal_groups.totals(rows, literal, len(labels), model.grid, name == "class_token")
    return totals


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
@pytest.mark.parametrize("variant", tiny.PUBLISHED, ids=tiny.names)
def test_groups_are_those_of_brute_force(
    variant: Variant, style: dict[str, Any], tasks: int, dtype: torch.dtype
) -> None:
    model, images = tiny.model(variant, HEADS[:tasks], **style).to(dtype), tiny.images(4)
    expected, bound = brute(model, images), 1e-12 if dtype == torch.float64 else 1e-6
    for size in (64, 3, 1):
        groups = quick(model, images, batch_size=size)
        agree(groups._found.sums, expected, bound)
        assert groups.images == 4
    shares = groups.whole_table(by=("layer", "expert")).groupby(["kind", "layer", "expert"])["share %"].sum()
    assert len(shares) and np.allclose(shares, 100, rtol=0, atol=100 * bound)


@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
@pytest.mark.parametrize("name", ["rings", "directions", "experts", "heads"])
def test_any_labelling_is_counted_the_same_way(name: str, style: dict[str, Any]) -> None:
    model, images = tiny.model(BOTH, HEADS, **style).double(), tiny.images(2)
    agree(quick(model, images, labelling=name)._found.sums, brute(model, images, name))


@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
def test_what_class_tokens_see(style: dict[str, Any]) -> None:
    """Class attention where there is, else the class token's own row of spatial attention; not task attention."""
    model, images = tiny.model(BOTH, HEADS, **style).double(), tiny.images(2)
    kinds = ["class"] if style is tiny.AUTHORS else ["spatial", "joint"]
    groups = quick(model, images, labelling="class_token")
    agree(groups._found.sums, brute(model, images, "class_token", kind=kinds))
    whole = groups.rows()
    assert whole["distance"].isna().all() and (whole["class %"] > 0).all()  # a class token is nowhere


@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
def test_what_cannot_be_seen_has_no_share_at_all(style: dict[str, Any]) -> None:
    table = quick(tiny.model(IA, **style), tiny.images()).whole_table().set_index(["scope", "group"])
    for scope in (FIRST, LATER):
        for group in ("SPDH", "DPDH"):
            row = table.loc[scope, group]
            assert row["share %"] == row["uniform %"] == 0.0 and np.isnan(row["effective keys"])
    table = (
        quick(tiny.model(DNE, **style).double(), tiny.images(), kind=("task1", "task2"))
        .whole_table()
        .set_index(["kind", "group"])
    )
    for kind in ("task1", "task2"):
        assert (table.loc[kind].loc[["DPSH", "DPDH"], ["share %", "uniform %"]] == 0).all().all()
        assert table.loc[kind].loc[["DPSH", "DPDH"], "effective keys"].isna().all()
        assert table.loc[kind].loc[["SPSH", "SPDH"], "share %"].sum() == pytest.approx(100, abs=1e-9)


@pytest.mark.parametrize("readout", ["cls_token", "class_attention"])
def test_queries_of_zero_give_the_shares_of_uniform_attention(readout: str) -> None:
    model = tiny.model(BOTH, HEADS, readout=readout).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("w_q"):
                parameter.zero_()
            elif name.endswith("attention.qkv"):
                parameter[0].zero_()
    groups = look(model, tiny.images(3))
    table, whole = groups.whole_table(by=("layer", "expert")), groups.rows(by=("layer", "expert"))
    assert close(table["share %"], table["uniform %"]) and close(
        table["mass per connection %"], table["uniform mass %"]
    )
    assert close(table["effective keys"], table["keys"])
    assert close(whole["entropy"], whole["uniform entropy"]) and close(whole["distance"], whole["uniform distance"])
    n = GRID[0] * GRID[1]
    for (kind, expert), part in table.groupby(["kind", "expert"]):
        heads = sum(HEADS[:expert]) if expert > 1 else 1
        full = [1 / (heads * n), (heads - 1) / (heads * n), (n - 1) / (heads * n), (heads - 1) * (n - 1) / (heads * n)]
        task = [1 / heads, (heads - 1) / heads, 0, 0]
        shares = part.groupby("group", sort=False)["share %"].mean()
        assert close(shares, [100 * share for share in (task if kind.startswith("task") else full)], 1e-11)
    on_class = whole[whole["kind"] == "joint"]["class %"]
    assert np.allclose(on_class, 100 / (n + 1) if readout == "cls_token" else 0.0, rtol=0, atol=1e-10)


def test_the_positional_start_alone_gives_expert_1_its_same_patch_share() -> None:
    """12 gated heads on 8 x 8 patches, of which 9 start on one cell each of a neighbourhood: 9.8%, untrained."""
    torch.manual_seed(0)
    network = tiny.network(depth=3, head_width=8, **tiny.AUTHORS)
    model = ExpandableViT(network, (3, 32, 32), IA)
    model.expand(12, 10)
    images = tiny.images(4, (3, 32, 32))
    assert quick(model, images).same_patch(FIRST).value == pytest.approx(9.8, abs=0.1)
    assert quick(model, images, part="content").same_patch(FIRST).value == pytest.approx(100 / 64, abs=0.1)
    gate = 1 / (1 + np.exp(-1))
    position = quick(model, images, part="position").same_patch(FIRST).value
    assert (1 - gate) * 100 / 64 + gate * position == pytest.approx(9.8, abs=0.1)


@pytest.mark.parametrize("readout", ["cls_token", "class_attention"])
@pytest.mark.parametrize("variant", [IA, STA, DNE], ids=tiny.names)
def test_the_gate_mixes_the_groups_of_content_and_position(variant: Variant, readout: str) -> None:
    model, images = tiny.model(variant, spatial="gpsa", readout=readout).double(), tiny.images()
    masses = [quick(model, images, ("spatial", "joint") if variant is STA else "spatial", 0, part=part)
              for part in ("attention", "content", "position")]  # fmt: skip
    assert [groups.part for groups in masses] == ["attention", "content", "position"]
    count = len(literal_groups.labellings(model.heads, GRID)["groups"][1])
    for head, vector in masses[0]._found.sums.items():
        gate = torch.sigmoid(tiny.expert(model, head[2]).blocks[0].attention.gate[head[3]])
        content, position = (groups._found.sums[head] for groups in masses[1:])
        assert close(vector[:count].detach(), ((1 - gate) * content + gate * position)[:count].detach())


def test_position_alone_is_of_attention_between_patches() -> None:
    images = tiny.images()
    found = quick(tiny.model(DNE, **tiny.AUTHORS), images, part="position")
    assert {head[0] for head in found._found.sums} == {"spatial"}
    with pytest.raises(LabError, match=r"task1 \(layers 0, .*part = 'position' is of attention between patches alone"):
        quick(tiny.model(DNE, **tiny.AUTHORS), images, "task1", 0, part="position")
    model = tiny.model(STA)
    with pytest.raises(LabError, match=r"blocks\.0\.spatial has no positional part\. Select layers"):
        quick(model, images, part="position")
    with pytest.raises(
        LabError, match=r"blocks\.1\.spatial has no positional part.*after the last block of a cls_token"
    ):
        quick(tiny.model(STA, spatial="gpsa"), images, part="position")
    assert not tiny.hooks(model)
    with pytest.raises(LabError, match="class tokens look at content alone, without a part = 'position'"):
        quick(tiny.model(STA, spatial="gpsa"), images, layer=0, labelling="class_token", part="position")
    with pytest.raises(LabError, match=r"unknown part of the attention 'positon'\. Did you mean position\?"):
        quick(model, images, part="positon")


def test_only_what_is_chosen_is_counted() -> None:
    model, images = tiny.model(STA, HEADS), tiny.images()
    every = quick(model, images)._found.sums
    for choice, count in [
        ({"expert": 1}, 2 * 3),
        ({"expert": 3}, 2 * 2),
        ({"expert": (1, 4)}, 2 * 4),
        ({"layer": 1}, 7),
        ({"kind": "joint", "layer": 0}, 4),
        ({"head": 1}, 2 * 2),
        ({"expert": 3, "head": 1, "layer": [0]}, 1),
    ]:
        some = quick(model, images, **choice)._found.sums  # type: ignore[arg-type]
        assert len(some) == count, choice
        for head, vector in some.items():
            assert close(vector, every[head], 1e-6)
    behind = quick(tiny.model(DNE, HEADS, **tiny.AUTHORS), images)._found.sums
    assert {head[1] for head in behind} == {0}  # in the last block nothing but a class token looks


@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
@pytest.mark.parametrize("variant", tiny.PUBLISHED, ids=tiny.names)
def test_a_network_that_trains_is_looked_at_as_in_evaluation_and_left_as_it_was(
    variant: Variant, style: dict[str, Any]
) -> None:
    model, images = tiny.model(variant, drop_path=0.5, **style), tiny.images(3)
    expected = quick(model, images)._found.sums
    model.train()
    model.blocks[1].training = False  # a mode of its own
    modes = [part.training for part in model.modules()]
    found = quick(model, images)._found.sums
    assert found.keys() == expected.keys() and all(torch.equal(found[head], expected[head]) for head in found)
    assert [part.training for part in model.modules()] == modes and torch.is_grad_enabled()
    assert not tiny.hooks(model) and all(p.grad is None for p in model.parameters())


def test_images_in_any_form() -> None:
    model, pixels = tiny.model(STA), tiny.images(7)
    plain = look(model, pixels)
    batch = Batch(pixels, torch.zeros(7), torch.arange(7))
    several: Iterator[Any] = iter([pixels[:2], pixels[2:3], pixels[3:]])
    for given in (batch, [pixels[:4], pixels[4:]], several):
        found = look(model, given)
        assert found.images == 7
        one, other = (groups.whole_table().select_dtypes("number") for groups in (found, plain))
        assert np.allclose(one, other, atol=1e-4, equal_nan=True)
    other = look(model, batch._replace(index=torch.arange(100, 107)))
    assert other.same_patch().value == pytest.approx(plain.same_patch().value)
    assert other.same_patch().low != plain.same_patch().low  # weights belong to the numbers of the images
    stream = tiny.tiny_stream()
    assert lab.attention_groups(nn.Sequential(model), stream.test_images(5), progress=False).images == 5


def test_a_labelling_of_ones_own() -> None:
    """Left and right half of the picture, by name as everybody's own."""
    model, images = tiny.model(STA, HEADS).double(), tiny.images()
    halves = lab.Labelling("halves", ("left", "right"), lambda pairs: pairs.key_patch % pairs.grid[1] > 0)
    groups = quick(model, images, labelling=halves)
    assert groups.labelling == "halves" and groups.labels == ("left", "right")
    with probe(model, dtype=torch.float64) as maps:
        model(images)
    left = every = 0.0
    for part in maps.select("joint"):
        for row in literal_groups.rows(part.values, part.axes):
            if row.query.patch != TOKEN:
                every += sum(value for key, value in row.keys if key.patch != TOKEN)
                left += sum(value for key, value in row.keys if key.patch in (0, 3))
    assert groups.share("left").value == pytest.approx(100 * left / every, abs=1e-10)


class Failing(nn.Module):
    """A network that fails on its second batch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.calls = network, 0

    def forward(self, images: Tensor) -> Any:
        """The network's output."""
        out = self.network(images)
        self.calls += 1
        if self.calls == 2:
            raise ZeroDivisionError("in the second batch")
        return out


def labelled(of: Callable[[Any], Any]) -> Labelling:
    """A labelling that goes wrong."""
    return Labelling("mine", ("near", "far"), of)


def wrong(pairs: Any) -> Any:
    raise ZeroDivisionError("in the labelling")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"kind": "joit"}, LabError, r"attention in sta 'joit'\. Did you mean joint\? Allowed: joint, spatial"),
        ({"kind": "task1"}, LabError, "unknown kind of attention in sta 'task1'"),
        ({"layer": 2}, LabError, "layer 2: this network has layers 0, 1"),
        ({"expert": 5}, LabError, "expert 5: this network has experts 1-4"),
        ({"kind": "joint", "expert": 1}, LabError, "no attention of kind joint with expert 1"),
        ({"labelling": "group"}, LabError, r"unknown labelling 'group'\. Did you mean groups\?"),
        ({"labelling": labelled(lambda p: np.zeros((9, 9), int))}, LabError, r"'mine' gave an array of shape \(9, 9\)"),
        ({"labelling": labelled(lambda p: p.key_patch)}, LabError, "'mine' gave places from 0 to 5: it has 2 labels"),
        ({"labelling": labelled(lambda p: p.same_head * 1.0)}, LabError, "'mine' gave float64 numbers"),
        ({"labelling": labelled(wrong)}, ZeroDivisionError, "in the labelling"),
        (
            {"labelling": "class_token", "by_patch": True},
            LabError,
            "by_patch: labelling 'class_token' counts the views",
        ),
        (
            {"images": tiny.images(2, (3, 8, 8))},
            LabError,
            r"takes uint8 images of shape \(B, 3, 8, 12\); given: uint8 of",
        ),
        ({"images": tiny.images(2).float()}, LabError, "given: float32"),
        ({"images": tiny.images(0)}, LabError, "there is no image to look at: the data set is empty"),
        ({"images": []}, LabError, "the data set is empty"),
        ({"images": tiny.images(1)[0]}, LabError, r"images have shape \(3, 8, 12\): give \(B, C, H, W\)"),
        ({"images": [tiny.images(2), tiny.images(2, (3, 4, 4))]}, LabError, r"given: uint8 of shape \(2, 3, 4, 4\)"),
        ({"batch_size": 0}, LabError, "batch_size = 0: must be a whole number, at least 1"),
        ({"replicates": -1}, LabError, "replicates = -1"),
        ({"part": "half"}, LabError, "unknown part of the attention 'half'"),
        ({"fails": True}, ZeroDivisionError, "in the second batch"),
        ({"fails": True, "shuffled": True}, ZeroDivisionError, "in the second batch"),
    ],
)
def test_an_error_says_what_is_wrong_and_leaves_no_trace(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    network = tiny.model(STA, HEADS).train()
    network.blocks[0].training = False
    foreign = network.blocks[0].register_forward_hook(lambda *_: None)
    before, modes = tiny.hooks(network), [part.training for part in network.modules()]
    choice = dict(given)
    model = Failing(network) if choice.pop("fails", False) else network
    with pytest.raises(error, match=message):
        look(model, choice.pop("images", tiny.images(6)), **{"batch_size": 2, **choice})
    assert tiny.hooks(network) == before and [part.training for part in network.modules()] == modes
    assert torch.is_grad_enabled()
    foreign.remove()
    assert not tiny.hooks(network) and len(quick(network, tiny.images()).whole_table()) == 8


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            {"kind": "class"},
            r"class \(layers 1, .*no row to count, because only class tokens look there and labelling 'gr",
        ),
        ({"kind": ("spatial", "class")}, r"^class \(layers 1, experts 1-4"),
        ({"layer": 1}, r"labelling='class_token' shows what class tokens see"),
        ({"layer": (0, 1)}, r"task1 \(layers 1, "),
        (
            {"labelling": "class_token", "kind": "task1"},
            "no class token looks at patches there, and labelling 'class_tok",
        ),
    ],
    ids=str,
)
def test_attention_without_rows_is_refused(choice: dict[str, Any], message: str) -> None:
    model = tiny.model(DNE, HEADS, **tiny.AUTHORS)
    with pytest.raises(LabError, match=message):
        quick(model, tiny.images(), **choice)
    assert not tiny.hooks(model)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2), "Linear has no attention points"),
        (tiny.model(DNE, ()), "no expert yet"),
        (None, "not NoneType"),
        (tiny.images(), "not Tensor"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_has_no_attention(model: Any, message: str) -> None:
    with pytest.raises(LabError, match=message):
        quick(model, tiny.images())


def test_no_map_outlives_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensors alive when a batch begins are as many bytes after nine batches as after two."""
    model, images, alive = tiny.model(STA, HEADS), tiny.images(20), []
    begin = Accumulator.begin

    def watched(self: Accumulator, index: Tensor) -> None:
        begin(self, index)
        storages = {}
        for thing in gc.get_objects():
            if type(thing) in (Tensor, nn.Parameter):
                storage = thing.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        alive.append(sum(storages.values()))

    monkeypatch.setattr(Accumulator, "begin", watched)
    gc.collect()
    gc.disable()  # what is left must go by itself, not when the collector comes
    try:
        look(model, images, batch_size=2)
        look(model, images, batch_size=2, shuffled=True)
    finally:
        gc.enable()
    assert len(alive) == 20 and len({*alive[2:10]}) == 1 and len({*alive[12:]}) == 1


def test_results_hold_nothing_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (look(tiny.model(STA, HEADS), tiny.images(count), by_patch=True) for count in (2, 30))
    sizes = []
    for groups in (few, many):
        seen = [*groups._found.sums.values(), *groups._found.drawn.values(), *groups._found.patches.values()]
        sizes.append([(part.shape, part.untyped_storage().nbytes()) for part in seen])
        assert not any(part.requires_grad for part in seen)
        assert not [r for r in gc.get_referents(groups, groups._found) if isinstance(r, nn.Module)]
    assert sizes[0] == sizes[1]
