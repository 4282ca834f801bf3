"""A configuration is data: values checked where they are made, the same text and hash everywhere."""

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dne_lab.core import config, presets, schema
from dne_lab.core.config import Config, Data, Loss, Memory, Network, Recipe, from_dict
from dne_lab.core.errors import LabError
from dne_lab.measure.record import find
from dne_lab.training.evaluation import settings_sha256

ROOT = Path(__file__).parents[2]

counts = st.integers(1, 500)
lists = st.lists(st.integers(1, 60), min_size=1, max_size=6).map(tuple)
rates = st.floats(0, 10, allow_nan=False)
recipes = st.builds(
    Recipe, epochs=counts, batch=counts, lr=rates, weight_decay=rates, warmup=rates, milestones=lists,
    optimizer=st.sampled_from(config.OPTIMIZERS), schedule=st.sampled_from(config.SCHEDULES),
    clip=st.none() | st.floats(1e-3, 10),
    augment=st.lists(st.sampled_from(config.AUGMENTATIONS), max_size=3).map(tuple),
)  # fmt: skip
configs = st.builds(
    Config, method=st.sampled_from(["dne", "joint"]), seed=st.integers(-5, 10**9), learn=recipes, tune=recipes,
    data=st.builds(Data, tasks=lists, path=st.none() | st.just("some/folder"), size=st.none() | counts,
                   order=st.sampled_from(["identity", "3", "2,0,1", "podnet_1"]), validation=st.floats(0, 0.99)),
    network=st.builds(Network, heads=lists, depth=st.integers(2, 9), hidden_norm=st.booleans(),
                      spatial=st.sampled_from(config.SPATIAL), readout=st.sampled_from(config.READOUTS)),
    loss=st.builds(Loss, classification=st.sampled_from(config.LOSSES), expertise=rates),
    memory=st.builds(Memory, budget=st.integers(0, 5000), policy=st.sampled_from(config.POLICIES)),
    options=st.dictionaries(st.sampled_from(["a", "b"]), st.integers() | st.booleans() | st.text("ab.-", max_size=3)),
)  # fmt: skip
quick = settings(derandomize=True, deadline=None, max_examples=50)


@quick
@given(configs)
def test_a_configuration_comes_back_from_its_dictionary_and_from_json(one):
    assert from_dict(one.to_dict()) == one
    again = from_dict(json.loads(json.dumps(one.to_dict())))
    assert again == one and again.sha256 == one.sha256
    assert one.with_changes({}) == one


@quick
@given(configs)
def test_every_field_can_be_set_from_its_own_text(one):
    tree = one.to_dict()
    text = {}
    for name in config.field_names(Config):
        value = tree
        for part in name.removesuffix(".NAME").split("."):
            value = value[part]
        if name.endswith(".NAME"):
            own = {inner: wanted if isinstance(wanted, str) else json.dumps(wanted) for inner, wanted in value.items()}
            text |= {f"options.{inner}": wanted for inner, wanted in own.items()}
        elif name == "network.heads" and len(value) == 1:
            text[name] = f"{value[0]},"  # one number alone would be the heads of later experts
        else:
            text[name] = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    assert Config().with_changes(text) == one


@quick
@given(configs, configs)
def test_unlike_configurations_have_unlike_hashes(one, other):
    assert (one == other) == (one.sha256 == other.sha256)


def test_the_hash_is_the_same_in_another_process_whatever_the_order_of_fields():
    one = from_dict({"seed": 2, "learn": {"lr": 0.1, "epochs": 3}, "options": {"b": 1, "a": 2}})
    other = from_dict({"options": {"a": 2, "b": 1}, "learn": {"epochs": 3, "lr": 0.1}, "seed": 2})
    code = f"from dne_lab.core.config import from_dict; print(from_dict({one.to_dict()}).sha256)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert told == one.sha256 == other.sha256 and re.fullmatch("[0-9a-f]{64}", told)


@pytest.mark.parametrize(
    ("value", "heads"),
    [
        (3, (12, 3)), ("3", (12, 3)), (" 3 ", (12, 3)), ("8,2", (8, 2)), ((8, 2), (8, 2)), ([6], (6,)), ("6,", (6,)),
        ("12,1,2", (12, 1, 2)),
    ],
)  # fmt: skip
def test_one_number_of_heads_is_that_of_later_experts(value, heads):
    network = Config().with_changes({"network.heads": value}).network
    assert network.heads == heads
    assert [network.heads_of(task) for task in (1, 2, 3, 9)] == [(*heads, *[heads[-1]] * 9)[i] for i in (0, 1, 2, 8)]


def test_text_is_converted_and_groups_can_be_given_whole():
    changed = Config().with_changes(
        {
            "learn.epochs": " 7 ", "learn.lr": "1e-2", "learn.clip": "0.5", "tune.clip": "none", "data.tasks": "5,3, 2",
            "network.hidden_norm": "Yes", "learn.augment": "crop,flip", "data.size": "", "data.order": [2, 0, 1],
            "learn.batch": 8.0, "options.own": "x", "tune": {"epochs": 2, "lr": "0.3"},
        }
    )  # fmt: skip
    assert (changed.learn.epochs, changed.learn.lr, changed.learn.clip, changed.learn.batch) == (7, 0.01, 0.5, 8)
    assert (changed.tune.clip, changed.tune.epochs, changed.tune.lr) == (None, 2, 0.3)
    assert changed.data == dataclasses.replace(Data(), tasks=(5, 3, 2), order="2,0,1")
    assert changed.network.hidden_norm is True and changed.learn.augment == ("crop", "flip")
    assert changed.options == {"own": "x"}
    assert Config() == from_dict({})  # the one that was changed from is as it was


BAD = [
    ("learn.epochs", "many", "learn.epochs = 'many': must be a whole number."),
    ("learn.epochs", 2.5, "learn.epochs = 2.5: must be a whole number."),
    ("learn.epochs", True, "must be a whole number"),
    ("learn.epochs", -1, "learn.epochs = -1: must be at least 0."),
    ("learn.lr", "fast", "learn.lr = 'fast': must be a number."),
    ("learn.lr", "nan", "learn.lr = nan: must be at least 0 and finite."),
    ("learn.lr", "inf", "learn.lr = inf: must be at least 0 and finite."),
    ("learn.clip", "0", "learn.clip = '0': must be above 0, or none."),
    ("tune.batch", 0, "tune.batch = 0: must be at least 1."),
    ("tune.optimizer", "adam", "unknown tune.optimizer 'adam'. Did you mean adamw? Allowed: adamw, sgd."),
    ("learn.schedule", "cos", "unknown learn.schedule 'cos'. Did you mean cosine or"),
    ("learn.augment", "crop,flop", "unknown augmentation 'flop'. Did you mean flip or crop?"),
    ("data.tasks", "5,x", "data.tasks holds 'x': must be a list of whole numbers, e.g. 50,10,10."),
    ("data.tasks", "", "needs at least one task of at least one class"),
    ("data.tasks", "5,0", "needs at least one task of at least one class"),
    ("data.validation", 1, "data.validation = 1: must be at least 0 and below 1, e.g. 0.2."),
    ("data.size", 0, "data.size = 0: must be at least 1"),
    ("network.patch", 0, "network.patch = 0: must be at least 1"),
    ("network.heads", "4,0", "every expert needs at least one head"),
    ("network.depth", 1, "network.depth = 1: must be at least 2, because class_attention"),
    ("network.drop_path", 1.5, "network.drop_path = 1.5: must be at least 0 and below 1"),
    ("network.hidden_norm", "maybe", "network.hidden_norm = 'maybe': must be true or false."),
    ("network.spatial", "gsa", "unknown network.spatial 'gsa'. Did you mean gpsa or mhsa? Allowed: gpsa, mhsa."),
    ("network.readout", "mean", "Allowed: class_attention, cls_token."),
    ("loss.classification", "mse", "Allowed: bce, ce."),
    ("loss.expertise", -0.1, "loss.expertise = -0.1: must be at least 0"),
    ("memory.budget", -1, "memory.budget = -1: must be at least 0"),
    ("memory.policy", "none", "unknown memory.policy 'none'. Allowed: fixed, shared."),
    ("precision", "fp16", "unknown precision 'fp16'. Did you mean bf16? Allowed: auto, bf16, bf16-stem, float32."),
    ("learn.epoch", 3, "unknown field 'learn.epoch'. Did you mean learn.epochs"),
    ("epochs", 3, "unknown field 'epochs'. Did you mean tune.epochs or stem.epochs or learn.epochs?"),
    ("learn.epochs.x", 3, "unknown field 'learn.epochs.x'. Did you mean learn.epochs"),
    ("a.b.c", 3, "unknown field 'a.b.c'."),
    ("learn", 3, "unknown field 'learn'. Did you mean learn."),
    ("learn", {"epoch": 3}, "unknown field 'learn.epoch'. Did you mean learn.epochs"),
    ("options", 3, "unknown field 'options'. Did you mean options.NAME"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_a_wrong_value_names_the_field_what_was_given_and_what_is_allowed(name, value, message):
    with pytest.raises(LabError, match=re.escape(message)):
        Config().with_changes({name: value})


def test_an_unknown_field_of_a_group_lists_that_group_alone():
    with pytest.raises(LabError, match=r"Allowed: memory\.budget, memory\.bytes, memory\.policy\.$"):
        Config().with_changes({"memory.size": 3})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"nope": 1}, "unknown field 'nope'"),
        ({"data": {"nope": 1}}, "unknown field 'data.nope'"),
        ({"data": 5}, "data = 5: is a group of fields: data.name, data.path"),
        ([], "configuration = []: is a group of fields"),
        ({"options": 5}, "options = 5: must be a dictionary"),
    ],
)
def test_a_damaged_dictionary_is_refused(tree, message):
    with pytest.raises(LabError, match=re.escape(message)):
        from_dict(tree)


def test_an_option_is_the_same_however_it_is_written():
    given = {"options.width": 32, "options.later": {"lr": 0.5}, "options.reset": False, "options.network": "resnet34"}
    text = {"options.width": "32", "options.later.lr": "0.5", "options.reset": "false", "options.network": "resnet34"}
    assert Config().with_changes(text).sha256 == Config().with_changes(given).sha256
    kept = {"options.a": "1e999", "options.b": "[1]", "options.c": "NaN", "options.d": "03"}
    assert Config().with_changes(kept).options == {"a": "1e999", "b": "[1]", "c": "NaN", "d": "03"}


def test_options_of_a_method_without_any_are_refused_in_words():
    @dataclasses.dataclass(frozen=True)
    class Nothing:
        pass

    with pytest.raises(LabError, match=r"unknown field 'options.x': options has no fields here"):
        schema.build(Nothing, {"x": 1}, "options.")


def test_rates_follow_the_schedules():
    cosine = Recipe(epochs=10, lr=1.0, min_lr=0.2, warmup=2, warmup_lr=0.1)
    assert [cosine.rate(e) for e in (0, 1)] == pytest.approx([0.1, 0.55])
    assert cosine.rate(5) == pytest.approx(0.6) and cosine.rate(10) == cosine.rate(11) == pytest.approx(0.2)
    steps = Recipe(epochs=10, lr=1.0, schedule="milestones", milestones=(4, 8), factor=0.1)
    assert [steps.rate(e) for e in (3.9, 4, 7.9, 8)] == pytest.approx([1, 0.1, 0.1, 0.01])
    assert Recipe(schedule="constant", lr=0.3).rate(99) == 0.3


def test_a_group_within_the_options_is_set_field_by_field():
    one = Config().with_changes({"options.later.epochs": "4", "options.later.lr": 0.1, "options.loss": "bce"})
    assert one.options == {"later": {"epochs": 4, "lr": 0.1}, "loss": "bce"}
    assert one.with_changes({"options.later.lr": 0.2}).options["later"] == {"epochs": 4, "lr": 0.2}
    assert from_dict(one.to_dict()) == one
    with pytest.raises(LabError, match=r"unknown field 'options\.later'.*options\.later\.NAME"):
        one.with_changes({"options.later": 3})
    with pytest.raises(LabError, match=r"unknown field 'options\.loss\.x'"):
        one.with_changes({"options.loss.x": 3})


def test_a_class_order_may_follow_from_the_seed():
    made = presets.resolve("cifar100-small", {"data.order": "podnet_seed"}, method="ia", seed=1)
    assert made.data.order == "podnet_2" and made.data.order_rule == "podnet_seed"
    orders = [dataclasses.replace(made, seed=seed).data.order for seed in range(4)]
    assert orders == ["podnet_1", "podnet_2", "podnet_3", "podnet_1"]
    assert from_dict(made.to_dict()) == made and from_dict(made.identity()).sha256 == made.sha256
    seeds = [settings_sha256(dataclasses.replace(made, seed=seed)) for seed in range(3)]
    assert len(set(seeds)) == 1  # they are averaged
    fixed = made.with_changes({"data.order": "podnet_2"})
    assert dataclasses.replace(fixed, seed=5).data.order == "podnet_2" and fixed.data.order_rule is None
    assert settings_sha256(fixed) != seeds[0] and fixed.sha256 != made.sha256
    assert made.with_changes({"learn.epochs": 3}).data == made.data
    with pytest.raises(LabError, match=r"unknown data.order_rule 'mine'"):
        made.with_changes({"data.order_rule": "mine"})


def test_committed_records_keep_the_hash_of_their_configuration():
    records = [r for r in find(ROOT / "figures" / "records") if r.config]
    assert len(records) > 100
    for record in records:
        tree = from_dict(record.config).identity()
        tree["data"]["path"] = None  # the oldest records hashed it too
        oldest = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
        assert record.config_sha256 in (from_dict(record.config).sha256, oldest), record.id


def test_a_stem_given_in_part_keeps_the_rest_of_its_own_defaults() -> None:
    whole, part = Config().stem, from_dict({"stem": {"epochs": 3}}).stem
    assert part == dataclasses.replace(whole, epochs=3) and part.optimizer == "sgd" != Config().learn.optimizer
    assert presets.resolve("cifar100-medium").stem.lr == whole.lr
