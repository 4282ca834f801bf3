"""Presets: partial configurations that compose left to right."""

import json
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dne_lab.methods  # noqa: F401  (registers the methods)
from dne_lab.core import presets
from dne_lab.core.config import ORDER_RULES, Config, Data
from dne_lab.core.errors import LabError
from dne_lab.data.stream import named_orders
from dne_lab.measure.cost import blank_stream, shape_of
from dne_lab.methods.base import Method, configure, create, find

OF_METHODS = [name for name in presets.PRESETS if name.split("-")[0] in {*presets.PUBLISHED, *presets.SMALL}]
SWITCHES = ("paper-text", "authors-code", "paper-schedule", *OF_METHODS)


def leaves(tree, prefix=""):
    """{dotted name: value} of a nested dictionary."""
    found = {}
    for name, value in tree.items():
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def said(tree):
    """`leaves` of a preset, with the order of seed 0 where it says that the order follows from the seed."""
    found = leaves(tree)
    if found.get("data.order") in ORDER_RULES:
        rule = found["data.order"]
        found |= {"data.order": ORDER_RULES[rule](0)} | (
            {"data.order_rule": rule} if "data.order_rule" in found else {}
        )
    return found


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_resolves_to_what_it_says(name):
    config = presets.resolve(name)
    assert config.preset == name
    resolved = leaves(config.to_dict())
    assert {field: resolved[field] for field in leaves(presets.PRESETS[name])} == said(presets.PRESETS[name])
    if name in SWITCHES:
        assert presets.names_dataset(name) is None and "data" not in presets.PRESETS[name]
        return
    assert presets.names_dataset(name) == config.data.name
    sides = shape_of(config.data)[1:]
    assert all(side % config.network.patch == 0 for side in sides)
    assert config.memory.budget >= sum(config.data.tasks)
    assert config.data.order == "identity" or len(named_orders()[config.data.order]) == sum(config.data.tasks)


@pytest.mark.parametrize("data", ["cifar100-b50", "digits100-b50"])
@pytest.mark.parametrize("step", [2, 5, 10, 25])
def test_every_step_of_the_paper_has_a_preset(data, step):
    config = presets.resolve(f"{data}-{step}")
    assert config.data.tasks == (50, *[step] * (50 // step)) and sum(config.data.tasks) == 100


def test_the_papers_settings():
    for name in ("cifar100-b50-10", "imagenet100-b50-10"):
        config = presets.resolve(name)
        assert (config.network.depth, config.network.head_width, config.network.heads) == (6, 32, (12, 1))
        assert (config.learn.epochs, config.tune.epochs, config.memory.budget) == (500, 20, 2000)
        assert config.learn.lr == 5e-4 * config.learn.batch / 512
        assert config.data.order == "podnet_1"
    assert presets.resolve("imagenet100-b50-10").data.size == 224


SGD = {
    "optimizer": "sgd", "batch": 128, "momentum": 0.9, "lr": 0.1, "weight_decay": 5e-4, "min_lr": 0.0, "warmup": 0,
    "warmup_lr": 0.0, "milestones": [], "factor": 0.1, "clip": None, "augment": ["crop", "flip", "brightness"],
}  # fmt: skip
FIXED = {"budget": 2000, "policy": "fixed", "bytes": None}


def test_the_recipe_of_der():
    config = presets.resolve("cifar100-b50-10,der-published", method="der").to_dict()
    steps = SGD | {"schedule": "milestones"}
    assert config["learn"] == steps | {"epochs": 170, "warmup": 10, "milestones": [110, 130]}
    assert config["tune"] == steps | {"epochs": 30, "milestones": [15]}
    assert config["memory"] == FIXED and config["options"] == {}
    options = find("der").Options()
    assert (options.network, options.width, options.reset, options.temperature) == ("resnet18", None, True, 5)


def test_the_recipe_of_foster():
    config = presets.resolve("cifar100-b50-10,foster-published", method="foster")
    augment = [*SGD["augment"], "autoaugment", "cutout"]
    learn = SGD | {"epochs": 200, "schedule": "cosine", "augment": augment}
    made = create(config, blank_stream(config.data.tasks))
    first, second = (made.stages(made.stream.task(number)) for number in (1, 2))
    recipes = [json.loads(json.dumps(asdict(stage.recipe))) for stage in (*first, *second)]
    assert recipes == [learn, learn | {"epochs": 170}, learn | {"epochs": 130, "weight_decay": 0.0}]
    assert config.to_dict()["memory"] == FIXED
    others = (("", 128, 0.94), (",foster-ns2", 128, 0.95), (",foster-imagenet", 256, 0.97))
    for extra, batch, beta in others:
        config = presets.resolve(f"foster-published{extra}", method="foster")
        options = find("foster").Options(**config.options)
        assert (options.boost_beta, options.compress_beta, options.weights) == (beta, 0.97, "divide")
        assert config.to_dict()["learn"] == learn | {"batch": batch}


def test_what_differs_on_large_images():
    for method, extra in (("icarl", "resnet"), ("podnet", "resnet"), ("der", "der"), ("foster", "foster")):
        config = presets.resolve(f"imagenet100-b50-10,{method}-published,{extra}-imagenet", method=method)
        options = find(method).Options(**config.options)
        assert (options.network, options.width) == ("resnet18-224", None)
        assert method != "der" or options.temperature == 1


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(sorted(presets.PRESETS)), max_size=4))
def test_a_later_preset_wins_field_by_field(names):
    expected = leaves(Config().to_dict())
    for name in names:
        expected |= leaves(presets.PRESETS[name])
    expected["preset"] = ",".join(names)
    assert leaves(presets.resolve(names).to_dict()) == said(expected)
    assert presets.resolve(" , ".join(names)) == presets.resolve(names)


def test_changes_win_over_presets_and_presets_stay_as_they_are():
    before = json.dumps(presets.PRESETS)
    changed = presets.resolve(
        "digits,authors-code",
        {"learn.epochs": "3", "network.spatial": "mhsa", "network.heads": "2"},
        method="ia",
        seed=4,
    )
    assert (changed.method, changed.seed, changed.learn.epochs, changed.network.spatial) == ("ia", 4, 3, "mhsa")
    assert changed.network.heads == (presets.PRESETS["digits"]["network"]["heads"][0], 2)
    assert json.dumps(presets.PRESETS) == before


def test_the_switches_of_text_and_code_are_each_others_contrary():
    text, code = leaves(presets.PAPER_TEXT), leaves(presets.AUTHORS_CODE)
    assert text.keys() == code.keys() and all(text[name] != code[name] for name in text)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("digit", "unknown preset 'digit'. Did you mean digits"),
        ("digits,paper", "unknown preset 'paper'. Did you mean paper-text"),
        ("digits;authors-code", "unknown preset"),
    ],
)
def test_an_unknown_preset_names_the_nearest(names, message):
    with pytest.raises(LabError, match=message):
        presets.resolve(names)


def test_small_and_published_stand_for_what_the_method_has():
    class Mine(find("icarl")):  # it has no recipe of its own: that of what it derives from
        name = "tiny-mine"

    try:
        chosen = {name: configure(name, "digits100, small").preset for name in Method.registry}
    finally:
        del Method.registry["tiny-mine"]
    assert chosen["icarl"] == chosen["tiny-mine"] == "digits100,icarl-small"
    assert {chosen[f"{name}-resnet"] for name in ("joint", "finetune", "replay")} == {"digits100,resnet-small"}
    assert {chosen[name] for name in ("ia", "sta", "dne", "joint", "finetune", "replay")} == {"digits100"}
    for kind in presets.KINDS:  # no recipe is left without a method
        for name in Method.registry:
            own = f"{name}-{kind}"
            assert own not in presets.PRESETS or configure(name, f"digits100,{kind}").preset == f"digits100,{own}"
    assert configure("foster", "cifar100-b50-2,published,foster-ns2").options["boost_beta"] == 0.95
    config = configure("podnet", "cifar100-b50-10,published", {"learn.epochs": 3}, seed=4)
    assert config == presets.resolve("cifar100-b50-10,podnet-published", {"learn.epochs": 3}, method="podnet", seed=4)
    with pytest.raises(LabError, match="preset 'small' stands for a method's own, such as icarl-small"):
        presets.resolve("digits,small")


@pytest.mark.parametrize("names", ["cifar100-b50-10", "digits100", "digits,digits100", "digits100,authors-code"])
def test_a_preset_for_other_data_than_the_stream_is_refused(names):
    with pytest.raises(
        LabError, match=r"but the stream is 'digits'. Take a preset for that data, or one of the switches"
    ):
        presets.for_stream(presets.resolve(names), Data("digits"))


@pytest.mark.parametrize("names", ["", "digits", "authors-code", "digits100,digits", "paper-schedule,paper-text"])
def test_a_preset_for_the_streams_data_or_of_switches_takes_the_streams_description(names):
    data = Data("digits", tasks=(5, 5), order="3", validation=0.2)
    config = presets.for_stream(presets.resolve(names), data)
    assert config.data == data
    assert {**config.to_dict(), "data": 0} == {**presets.resolve(names).to_dict(), "data": 0}
