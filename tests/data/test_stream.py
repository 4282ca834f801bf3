import copy
import dataclasses
import json
from importlib import resources

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dne_lab.core import config
from dne_lab.core.errors import LabError
from dne_lab.data.source import ArraySource
from dne_lab.data.stream import ClassStream, Task, class_order, from_config, named_orders, stream


def source(classes=6, train=5, test=2):
    """Images whose first pixel is their class number and whose second one is their place in the class."""
    splits = []
    for count in (train, test):
        labels = np.tile(np.arange(classes), count)
        images = np.zeros((len(labels), 2, 2), np.uint8)
        images[:, 0, 0], images[:, 0, 1] = labels, np.repeat(np.arange(count), classes)
        splits += [images, labels]
    return ArraySource(*splits, class_names=[f"class {n}" for n in range(classes)])


def test_tasks_are_ranges_of_ranks():
    ours = ClassStream(source(), [3, 2, 1])
    assert list(ours) == [
        Task(1, range(0), range(3)),
        Task(2, range(3), range(3, 5)),
        Task(3, range(5), range(5, 6)),
    ]
    assert (len(ours), ours.tasks, ours.classes) == (3, (3, 2, 1), 6)
    assert ours.task(2) == list(ours)[1]
    with pytest.raises(LabError, match="has tasks 1 to 3"):
        ours.task(4)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    st.permutations(range(6)), st.sampled_from([(6,), (3, 2, 1), (1,) * 6, (2, 4)]), st.sampled_from([0.0, 0.2, 0.5])
)
def test_labels_are_ranks_and_every_image_is_in_one_task(order, tasks, validation):
    ours = ClassStream(source(), tasks, order, validation)
    assert ours.order == tuple(order)
    assert ours.class_names == tuple(f"class {n}" for n in order)
    for split in ("train", "test"):
        parts = []
        for task in ours:
            index = ours.index(split, task.new)
            batch = ours.batch(split, index)
            assert torch.equal(index, index.sort().values)
            assert set(batch.labels.tolist()) == set(task.new)
            assert batch.images[:, 0, 0, 0].tolist() == [order[rank] for rank in batch.labels.tolist()]
            parts.append(index)
        whole = ours.index(split, range(6))
        assert torch.equal(torch.cat(parts).sort().values, whole)
        assert torch.equal(ours.index(split, range(0, 6, 1)), ours.index(split, range(5, -1, -1)))
    train, test = (set(ours.index(split, range(6)).tolist()) for split in ("train", "test"))
    if validation:
        assert not train & test
        assert train | test == set(range(30))
    else:
        assert (len(train), len(test)) == (30, 12)


def test_validation_images_are_training_images_the_same_share_of_each_class():
    data = source(train=10)
    ours = ClassStream(data, [6], "3", validation=0.2)
    held = ours.index("test", range(6))
    assert torch.bincount(ours.labels("test", held)).tolist() == [2] * 6
    assert torch.equal(ours.images("test", held), data.images("train", held))
    assert (ours.labels("train", held) == -1).all()
    # which ones depends on the class alone, so the order and the tasks change nothing
    assert torch.equal(held, ClassStream(data, [2, 4], "identity", 0.2).index("test", range(6)))
    assert not torch.equal(held % 6, held)
    assert len(ClassStream(data, [6], validation=0.01).index("test", range(6))) == 6
    with pytest.raises(LabError, match="none to train on"):
        ClassStream(data, [6], validation=0.96)
    with pytest.raises(LabError, match="validation = 1"):
        ClassStream(data, [6], validation=1.0)


def test_slices_are_streams_with_ranks_of_their_own():
    ours = ClassStream(source(), [3, 2, 1], [5, 4, 3, 2, 1, 0], validation=0.4)
    later = ours[1:]
    assert (later.tasks, later.order, later.classes) == ((2, 1), (2, 1, 0), 3)
    assert later.class_names == ("class 2", "class 1", "class 0")
    assert next(iter(later)) == Task(1, range(0), range(2))
    for split in ("train", "test"):
        assert torch.equal(later.index(split, range(3)), ours.index(split, range(3, 6)))
        index = later.index(split, range(3))
        assert torch.equal(later.labels(split, index) + 3, ours.labels(split, index))
    assert ours[:2][1:].order == ours[1:2].order == (2, 1)
    assert ours[-1:].order == (0,)
    with pytest.raises(LabError, match="holds no task"):
        ours[2:1]
    with pytest.raises(TypeError, match=r"stream\.task"):
        ours[0]
    assert (later.config().tasks, later.config().order) == ((2, 1), "2,1,0")
    assert ours[-1:].config().order == "0,"  # "0" would be a seed


def test_a_slice_is_found_again_by_its_configuration():
    ours = stream("digits", order=3, validation=0.2)
    for part in (ours[:2], ours[1:], ours[1:2], stream("digits", [9, 1])[1:]):
        again = from_config(part.config())
        assert (again.tasks, again.order) == (part.tasks, part.order) and again.config() == part.config()
        for split in ("train", "test"):
            assert torch.equal(again.index(split, range(part.classes)), part.index(split, range(part.classes)))
    for wrong in ({"tasks": (2, 1)}, {"tasks": (2, 2), "order": "1,2,2,3"}, {"tasks": (2, 2), "order": "1,2,3,77"}):
        with pytest.raises(LabError, match="not a permutation"):
            from_config(dataclasses.replace(ours[:1].config(), **wrong))


def test_joint_is_one_task_with_the_same_order():
    ours = ClassStream(source(), [3, 2, 1], "4")
    joint = ours.joint()
    assert (joint.tasks, joint.order) == ((6,), ours.order)
    assert torch.equal(joint.index("train", range(6)), ours.index("train", range(6)))


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 20))
def test_test_images_are_spread_evenly_over_classes(count):
    batch = ClassStream(source(), [3, 3], "1").test_images(count)
    assert len(batch.images) == len(batch.index) == min(count, 12)
    assert len(set(batch.index.tolist())) == len(batch.index)
    counts = torch.bincount(batch.labels, minlength=6)
    assert counts.max() - counts.min() <= 1
    assert torch.equal(batch.labels, batch.labels.sort().values)
    if count == 3:
        assert batch.labels.tolist() == [0, 2, 4]


def test_named_orders_are_permutations_of_a_hundred_classes_and_fit_nothing_else():
    assert set(named_orders()) == {"podnet_1", "podnet_2", "podnet_3", "seed_1993"}
    stored = json.loads(resources.files("dne_lab.data").joinpath("class_orders.json").read_text())
    for name, order in named_orders().items():
        assert sorted(order) == list(range(100))
        assert class_order(name, 100) == tuple(stored[name])
    rng = np.random.RandomState(1993)  # where the numbers of seed_1993 come from
    assert named_orders()["seed_1993"] == tuple(rng.permutation(100).tolist())
    with pytest.raises(LabError, match="is for 100 classes, the source has 10"):
        class_order("podnet_1", 10)


def test_orders_from_seeds_and_lists():
    assert class_order("identity", 4) == (0, 1, 2, 3)
    assert class_order("3, 1,0,2", 4) == class_order([3, 1, 0, 2], 4) == class_order(np.array([3, 1, 0, 2]), 4)
    assert class_order("7", 10) == class_order(np.int64(7), 10) != class_order(8, 10)
    assert sorted(class_order(7, 10)) == list(range(10))
    # the same on every machine and with every version of torch: these numbers are in records
    assert class_order(0, 10) == (7, 6, 3, 8, 0, 9, 2, 4, 5, 1)
    assert class_order(3, 10) == (4, 9, 3, 7, 2, 5, 8, 0, 1, 6)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("podnet", "Did you mean podnet"),
        ("", "unknown class order"),
        ("1,2,x", "unknown class order"),
        ("0,1,1,3", r"not a permutation of the class numbers 0..3: missing \[2\]"),
        ([0, 1, 2], r"missing \[3\]"),
        ([0, 1, 2, 3, 3], "5 entries is not a permutation"),
        ([0, 1, 2, 3.0], "a list of class numbers"),
        (None, "a list of class numbers"),
        (-1, "a seed must be 0 or more"),
    ],
)
def test_bad_orders(order, message):
    with pytest.raises(LabError, match=message):
        class_order(order, 4)


@pytest.mark.parametrize(
    ("arguments", "tasks"),
    [
        ({"tasks": (1, 2, 3)}, (1, 2, 3)),
        ({"tasks": "3,3"}, (3, 3)),
        ({"base": 2, "step": 2}, (2, 2, 2)),
        ({"step": 3}, (3, 3)),
        ({"base": 6}, (6,)),
        ({"base": 6, "step": 4}, (6,)),
    ],
)
def test_tasks_from_sizes_or_base_and_step(arguments, tasks):
    assert stream(source(), **arguments).tasks == tasks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": (3, 2)}, r"tasks 3\+2 = 5 classes, but arrays has 6"),
        ({"tasks": (3, 4)}, r"tasks 3\+4 = 7 classes, but arrays has 6"),
        ({"tasks": ()}, "at least one task"),
        ({"tasks": (6, 0)}, "at least one class"),
        ({"tasks": "3,x"}, "number of classes of each task"),
        ({"tasks": (3, 3.0)}, "number of classes of each task"),
        ({"tasks": (3, 3), "step": 3}, "not both"),
        ({"base": 2, "step": 3}, r"2 \+ 1 x 3 = 5"),
        ({"base": 8, "step": 3}, r"8 \+ 0 x 3 = 8"),
        ({"base": 2}, "Give a step for the other 4"),
        ({"base": 0, "step": 3}, "at least 1"),
        ({}, "no default tasks"),
    ],
)
def test_tasks_that_do_not_add_up_say_the_sums(arguments, message):
    with pytest.raises(LabError, match=message):
        stream(source(), **arguments)


def test_defaults_and_the_streams_of_the_paper():
    assert stream().tasks == (4, 2, 2, 2)
    hundred = stream("digits100")
    assert hundred.tasks == (50, 10, 10, 10, 10, 10)
    for step in (10, 5, 2, 25):
        assert len(stream("digits100", base=50, step=step)) == 1 + 50 // step
    assert stream("digits100", order="podnet_2").class_names[0] == "58"
    assert hundred.shape == (1, 16, 16)


def test_a_configuration_describes_a_stream(tmp_path):
    for order in ("2", 2, "identity", [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]):
        ours = stream("digits", tasks=(5, 5), order=order, validation=0.25)
        again = from_config(ours.config())
        assert (again.order, again.tasks) == (ours.order, ours.tasks)
        assert torch.equal(again.index("test", range(5)), ours.index("test", range(5)))
        assert again.config() == ours.config()
    assert from_config(config.Data()).name == "digits"
    with pytest.raises(LabError, match=r"4\+2\+2\+2 = 10 classes, but digits100 has 100"):
        from_config(config.Data("digits100"))
    with pytest.raises(LabError, match="no such folder"):
        from_config(config.Data("folder", path=str(tmp_path / "none")))


def test_a_stream_is_shared_by_copies_and_shows_itself():
    ours = stream("digits")
    assert copy.deepcopy({"stream": ours})["stream"] is ours
    assert copy.deepcopy(ours.source) is ours.source
    assert repr(ours) == "ClassStream(digits, tasks 4+2+2+2, 10 classes)"
    assert repr(ours.source) == "digits: 10 classes, 1,258 train, 539 test images, 1 x 8 x 8"
    with pytest.raises(LabError, match="unknown split 'valid'"):
        ours.index("valid", range(4))
    with pytest.raises(LabError, match="at least one image"):
        ours.test_images(0)
