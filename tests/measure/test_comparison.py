"""Which runs are compared with which, and that differences are taken seed by seed."""

from typing import Any

import pytest
from invented import record, runs

from dne_lab.measure.comparison import Pair, groups, is_method, pairs
from dne_lab.measure.metrics import forgetting, forgetting_by_task
from dne_lab.measure.record import Record


def found(records: list[Record], **choice: Any) -> list[Pair]:
    return pairs(groups(records), is_method("dne"), is_method("ia"), **choice)


def test_the_difference_is_paired_by_seed() -> None:
    (pair,) = found([*runs("dne", (80, 82, 84)), *runs("ia", (70, 74, 72)), record("ia", 9, 10.0)])
    mean, width = pair.difference()
    assert pair.strict and pair.seeds == [0, 1, 2] and pair.setting == "digits, 4 + 2 x 3, 30 epochs"
    assert mean == pytest.approx(10.0) and width == pytest.approx(4.3026527 * 2 / 3**0.5)  # 10, 8, 12
    assert pair.difference(lambda r: float(r.seed))[0] == 0
    (single,) = found([record("dne"), record("ia", last=79.0)])
    assert single.difference() == (1.0, None)


def test_only_one_stream_one_memory_and_test_images() -> None:
    ours = record("dne")
    assert not found([ours, record("ia", tasks=(5, 5))])
    assert not found([ours, record("ia", memory={"budget": 20, "policy": "shared"})])
    assert not found([ours, record("ia", validation=0.2)])
    assert not found([ours, record("ia", 3)])  # no common seed
    assert found([ours, record("ia", network={"patch": 4, "heads": [4, 1]})])[0].strict is False


def test_only_one_experiment() -> None:
    """A short run says nothing beside a long one; a method's own published schedule belongs to the method."""
    ours = record("dne")
    published = {"epochs": 200, "preset": "digits,icarl-published"}
    assert not found([ours, record("ia", epochs=31)])
    assert not found([ours, record("ia", epochs=31, preset="digits,icarl-small")])  # changed by hand
    assert not found([ours, record("ia", **{**published, "epochs": 3})])
    assert not found([record("dne", epochs=8), record("ia", **published)])
    assert not found([ours, record("ia", epochs=31, preset="mine")])
    assert not found([ours, record("ia", preset="digits100")])
    assert not found([ours, record("ia", preset="digits,paper-schedule")])
    assert found([ours, record("ia", preset="digits,paper-text")])
    (pair,) = found([ours, record("ia", **published)])
    assert pair.setting == "digits, 4 + 2 x 3, 30 and 200 epochs" and not pair.strict
    for one, other in (("digits100", "digits100-b50-5"), ("imagenet100-b50-10-patch32", "imagenet100-b50-10")):
        assert found(
            [record("dne", preset=one), record("ia", preset=other)]
        )  # the stream and the network are looked at


def test_equal_settings_go_before_others() -> None:
    slow, fast = {"config": {"learn": {"lr": 1}}}, {"config": {"learn": {"lr": 2}}}
    made = found([record("dne", **slow), record("dne", **fast), record("ia", **slow), record("ia", **fast)])
    assert [(p.one.first.config, p.other.first.config) for p in made] == [(slow["config"],) * 2, (fast["config"],) * 2]
    assert all(p.strict for p in made)


def test_heads() -> None:
    wide = {"heads": [4, 2, 2, 2]}
    records = [record("dne"), record("dne", **wide), record("ia", **wide)]
    assert len(found(records)) == 2
    (pair,) = found(records, same_heads=True)
    assert pair.one.first.heads == pair.other.first.heads == [4, 2, 2, 2]


def test_forgetting_by_task() -> None:
    matrix = [[90.0], [80.0, 70.0], [85.0, 75.0, 60.0]]
    assert forgetting_by_task(matrix) == [5.0, -5.0]
    assert forgetting(matrix) == 0.0 and forgetting([[90.0]]) is None and forgetting_by_task([[90.0]]) == []


def test_seeds_whose_class_order_follows_from_them_are_averaged_and_paired() -> None:
    def ruled(method: str, seed: int, rule: str | None = "podnet_seed") -> Record:
        order = [*range(seed, 10), *range(seed)]
        data = {"order": f"podnet_{seed + 1}", "order_rule": rule} if rule else {"order": f"podnet_{seed + 1}"}
        return record(method, seed, class_order=order, config={"seed": seed, "data": data})

    made = [*(ruled("dne", seed) for seed in range(3)), *(ruled("ia", seed) for seed in (1, 2))]
    assert sorted(len(group.records) for group in groups(made)) == [2, 3]
    (pair,) = found(made)
    assert pair.strict and pair.seeds == [1, 2]
    assert len(groups([ruled("dne", seed, None) for seed in range(3)])) == 3


def test_a_run_counts_once_whatever_its_precision() -> None:
    def at(precision: str, method: str, *values: float) -> list[Record]:
        return runs(
            method, values, config={"method": method, "precision": precision}, settings_sha256=precision.ljust(64, "0")
        )

    dne, twin = at("auto", "dne", 80, 81), at("bf16", "dne", 80, 82)
    (pair,) = found([*dne, *twin, *at("auto", "ia", 70, 71)])
    assert pair.one.records == tuple(dne)
    (pair,) = found([*dne, *twin, *at("bf16", "ia", 70, 71)])  # settings alike go before
    assert pair.one.records == tuple(twin) and pair.strict
    (pair,) = found([*dne[:1], *twin, *at("auto", "ia", 70, 71), *at("bf16", "ia", 70, 71)])
    assert len(pair.seeds) == 2 and pair.one.records == tuple(twin)


def test_beside_its_own_interval_a_difference_has_one_from_what_all_methods_have_in_common() -> None:
    made = [*runs("dne", (80, 82, 84)), *runs("ia", (70, 74, 72)), *runs("sta", (60, 62, 64))]
    (pair,) = found(made)
    # residuals of two methods of equal differences and one that is (-2, 2, 0) beside them: 4 degrees of freedom
    assert pair.deviation is not None and pair.deviation.freedom == 4
    assert pair.deviation.value == pytest.approx((16 / 3 / 4) ** 0.5)
    assert pair.pooled == pytest.approx(2.7764451 * (4 / 3 * 2 / 3) ** 0.5)
    assert found([record("dne"), record("ia", last=79.0)])[0].pooled is None


def test_what_a_reader_can_set_tells_groups_apart_before_a_digest_of_images_does() -> None:
    old = record("dne", config={"options": {}})
    mine = [
        record("dne", seed, config={"options": options}, images_sha256="a" * 64, settings_sha256=name)
        for seed, (name, options) in enumerate({"u": {"weights": "uniform"}, "f": {"experts": "first"}}.items())
    ]
    labels = {group.label for group in groups([old, *mine])}
    assert labels == {f"DNE (k = 1){more}" for more in ("", ", options.weights uniform", ", options.experts first")}
    other = record("dne", config={"options": {}}, images_sha256="b" * 64)
    assert {g.label for g in groups([record("dne", images_sha256="a" * 64), other])} == {
        f"DNE (k = 1), images {letter * 8}" for letter in "ab"
    }
