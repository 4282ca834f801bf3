"""Data sets of PyTorch as a stream: every kind of item, labels from wherever they are, and what is refused."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.data import Dataset, StackDataset, Subset, TensorDataset

import dne_lab as lab
from dne_lab.core.errors import LabError
from dne_lab.data.image_folder import FolderSource
from dne_lab.data.numbered import NumberedSource, of_torch

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 8, 10, 3), dtype=np.uint8)
LABELS = np.arange(24) % 3


class Items(Dataset[Any]):
    """(image, label) as a list has them; counts how often an item is read."""

    def __init__(self, images: Any, marks: Any = LABELS, **attributes: Any) -> None:
        self.items, self.reads = list(zip(images, marks, strict=True)), 0
        self.__dict__ |= attributes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Any:
        self.reads += 1
        return self.items[number]


KINDS: dict[str, Any] = {
    "Pillow": [Image.fromarray(image) for image in PIXELS],
    "height, width, channels": list(PIXELS),
    "channels first": list(torch.from_numpy(PIXELS).permute(0, 3, 1, 2)),
    "floats": list(torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_is_the_same_image(kind: str) -> None:
    items = Items(KINDS[kind])
    source = of_torch(items, items)
    assert source.shape == (3, 8, 10) and source.classes == ("0", "1", "2")
    index = torch.tensor([5, 0, 5, 23])
    assert torch.equal(source.images("train", index), torch.from_numpy(PIXELS).permute(0, 3, 1, 2)[index])
    np.testing.assert_array_equal(source.labels("test"), LABELS)


def test_grey_images_stay_grey_and_say_their_own_mean() -> None:
    items = Items(list(PIXELS[..., 0]))
    source = of_torch(items, items)
    assert source.shape == (1, 8, 10)
    assert source.mean == pytest.approx([PIXELS[..., 0].mean() / 255])
    assert source.std == pytest.approx([PIXELS[..., 0].std() / 255])


def test_images_are_kept_where_they_fit_and_read_again_where_not() -> None:
    for keep, expected in ((10**9, 0), (0, 4)):
        items = Items(list(PIXELS))
        source = NumberedSource(
            dict.fromkeys(("train", "test"), lambda number, items=items: items[number][0]),
            dict.fromkeys(("train", "test"), LABELS), list("abc"), name="mine", keep=keep,
        )  # fmt: skip
        source.images("train", torch.arange(4))
        before = items.reads
        first = source.images("train", torch.arange(4))
        assert items.reads - before == expected
        assert torch.equal(first, torch.from_numpy(PIXELS[:4]).permute(0, 3, 1, 2))


def test_a_size_is_reached_as_in_a_folder(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number, (image, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
            folder = tmp_path / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number:02d}.png")
    in_order = np.argsort(LABELS, kind="stable")
    items = Items(list(PIXELS[in_order]), LABELS[in_order])
    mine, theirs = of_torch(items, items, size=6), FolderSource(tmp_path, size=6)
    every = torch.arange(24)
    assert torch.equal(mine.images("train", every), theirs.images("train", every))
    assert mine.mean == theirs.mean and mine.classes == theirs.classes


@pytest.mark.parametrize("name", ["targets", "labels", "_labels"])
def test_labels_come_from_the_list_unless_the_items_say_otherwise(name: str) -> None:
    many = np.tile(LABELS, 20)
    items = Items(np.tile(PIXELS, (20, 1, 1, 1)), many, classes=["left", "middle", "right"], **{name: many.tolist()})
    source = of_torch(items, items)
    assert source.classes == ("left", "middle", "right") and items.reads < 480
    turned = Items(list(PIXELS), (LABELS + 1) % 3, **{name: LABELS.tolist()})  # as under a target_transform
    np.testing.assert_array_equal(of_torch(turned, turned).labels("train"), (LABELS + 1) % 3)
    part = Subset(items, range(12, 24))  # has no list
    np.testing.assert_array_equal(of_torch(items, part).labels("test"), LABELS[12:])


def test_tensors_as_items_train_and_are_opened_again(tmp_path: Path) -> None:
    images = torch.from_numpy(PIXELS[:, :8, :8]).permute(0, 3, 1, 2) / 255
    data = TensorDataset(images, torch.from_numpy(LABELS))
    stream = lab.stream(data, data, base=2, step=1)
    settings: dict[str, Any] = {
        "network": {"depth": 2, "head_width": 4, "heads": (2, 1), "patch": 4}, "learn__epochs": 1, "tune__epochs": 1,
        "memory__budget": 4, "device": "cpu", "progress": False,
    }  # fmt: skip
    run = lab.train("dne", stream, folder=tmp_path / "run", **settings)
    again = lab.open(tmp_path / "run", lab.stream((data, data), tasks=(2, 1)), progress=False)
    assert again.record == run.record
    other = TensorDataset(images.flip(0), torch.from_numpy(LABELS))
    with pytest.raises(LabError, match="training images"):
        lab.open(tmp_path / "run", lab.stream((other, data), tasks=(2, 1)), progress=False)
    with pytest.raises(LabError, match=r"dataset cannot be opened by name\. Pass the two data sets"):
        lab.open(tmp_path / "run")
    copied = pickle.loads(pickle.dumps(stream))  # for other processes
    assert torch.equal(copied.test_images(4).images, stream.test_images(4).images)


def test_two_data_sets_come_one_after_the_other_with_any_kind_of_tasks() -> None:
    train, test = Items(list(PIXELS)), Items(list(PIXELS))
    given = [lab.stream((train, test), (2, 1)), lab.stream((train, test), tasks=(2, 1))]
    given += [
        lab.stream(train, test, tasks=(2, 1)),
        lab.stream(train, test, (2, 1)),
        lab.stream(train, test, base=2, step=1),
    ]
    assert [one.tasks for one in given] == [(2, 1)] * 5
    for wrong in (lambda: lab.stream(train, tasks=(2, 1)), lambda: lab.stream(train, (2, 1))):
        with pytest.raises(LabError, match=r"alone: give two, .*lab.stream\(train, test"):
            wrong()
    with pytest.raises(LabError, match="is too much"):
        lab.stream("digits", (4, 2, 2, 2), (4, 2, 2, 2))
    with pytest.raises(LabError, match="is too much"):
        lab.stream("digits", (4, 2, 2, 2), tasks=(4, 2, 2, 2))


class Flipping(Items):
    def __getitem__(self, number: int) -> Any:
        image, label = super().__getitem__(number)
        return image[:, :: 1 - 2 * (self.reads % 2)], label


class Mirrored(Items):
    def __getitem__(self, number: int) -> Any:
        image, label = super().__getitem__(number)
        return torchvision.transforms.RandomHorizontalFlip()(torch.from_numpy(image).permute(2, 0, 1)), label


class Immeasurable(Items):
    def __len__(self) -> int:
        raise RuntimeError("not mounted")


class Computed(Items):
    @property
    def targets(self) -> Any:
        raise RuntimeError("not mounted")


class Raising(Items):
    def __getitem__(self, number: int) -> Any:
        raise OSError("no disk")


class Endless(Dataset[Any]):
    def __getitem__(self, number: int) -> Any:
        return PIXELS[number % 24], 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Flipping(list(PIXELS)), "image 0 is another one each time .* Leave random transforms out"),
        (Endless(), "the train data set has no length"),
        (Items(list(PIXELS), ["a"] * 24), "the label of train item 0 is 'a': give a whole number"),
        (Items(list(PIXELS), ["a"] * 24, targets=["a"] * 24), "the label of train item 0 is 'a': give a whole number"),
        (Items(list(PIXELS), [0.5] * 24), r"the label of train item 0 is 0\.5: give a whole number"),
        (Items(list(PIXELS), list(torch.eye(4)[LABELS])), r"the label of train item 0 is tensor.*argmax"),
        (Raising(list(PIXELS)), "train item 0 cannot be read: OSError: no disk"),
        (Mirrored(list(PIXELS)), "image .* is another one each time .* Leave random transforms out"),
        (TensorDataset(torch.zeros(6, 3, 8, 8)), r"train item 0 is a tuple of 1: give pairs"),
        (StackDataset(image=list(PIXELS), label=LABELS), r"train item 0 is a dict with 'image', 'label': give pairs"),
        (Immeasurable(list(PIXELS)), r"the train data set has no length \(not mounted\)"),
        (Items(list((PIXELS / 255).astype(">f4"))), "is no plain array of numbers .*byte order"),
        (Items([torch.zeros(3, 8, 8).to_sparse()] * 24), "is no plain array of numbers .*give uint8"),
        (Items(list((torch.from_numpy(PIXELS) - 128) / 50)), r"has numbers outside \[0, 1\]: leave normalisation out"),
        (Items(list(PIXELS.astype(np.int64))), "has type torch.int64: give uint8"),
        (Items(["image"] * 24), "is a str: give a Pillow image"),
        (Items([np.zeros((8, 8, 4), np.uint8)] * 24), r"has shape \(8, 8, 4\)"),
        (Items(list(PIXELS), LABELS * 2), r"classes without train images: 1 \(1\)"),
        (Items(list(PIXELS), LABELS - 1), "train labels run from -1 to 1"),
        (Items(list(PIXELS), classes=["a", "a", "b"]), "'a' is the name of two classes"),
        (Items([], []), "the train data set is empty"),
    ],
)
def test_what_is_no_data_set_of_images_is_refused_in_words(data: Any, message: str) -> None:
    with pytest.raises(LabError, match=message):
        lab.stream((data, data), base=2, step=1)


def test_both_sets_have_the_same_classes() -> None:
    """A label of the test set would mean another class of the training set."""
    left, right = (Items(list(PIXELS), classes=names) for names in (["a", "b", "c"], ("a", "c", "b")))
    with pytest.raises(LabError, match="class 1 is 'b' in the training set and 'c' in the test set"):
        of_torch(left, right)
    with pytest.raises(LabError, match="class 3 is not there in the training set and 'd' in the test set"):
        of_torch(left, Items(list(PIXELS), classes=[*"abcd"]))
    same, bare = Items(list(PIXELS), classes=("a", "b", "c")), Computed(list(PIXELS))
    assert of_torch(left, same).classes == of_torch(left, bare).classes == ("a", "b", "c")


@pytest.mark.parametrize("size", [0, 10_001, 8.0, "8", True])
def test_a_size_is_a_number_of_pixels(size: Any) -> None:
    """One of a million pixels took all memory."""
    items = Items(list(PIXELS))
    with pytest.raises(LabError, match=r"size = .*: must be a whole number of pixels from 1 to 10,000"):
        lab.stream(items, items, base=2, step=1, size=size)


def test_what_images_in_memory_cannot_have_is_refused() -> None:
    items, arrays = Items(list(PIXELS)), (PIXELS, LABELS, PIXELS, LABELS)
    with pytest.raises(LabError, match=r"path = 'here': .* Leave path out"):
        lab.stream(items, items, base=2, step=1, path="here")
    with pytest.raises(LabError, match=r"size = 8: .* Leave size out"):
        lab.stream(arrays, tasks=(2, 1), size=8)


def test_read_only_images_are_taken_without_a_word(recwarn: pytest.WarningsRecorder) -> None:
    images = [np.array(image) for image in PIXELS]
    for image in images:
        image.setflags(write=False)
    of_torch(Items(images), Items(images)).images("train", torch.arange(24))
    assert not [str(one.message) for one in recwarn]


def test_a_later_image_of_another_size_or_that_cannot_be_read_is_named() -> None:
    wide = [*PIXELS[:7], np.zeros((8, 9, 3), np.uint8), *PIXELS[8:]]
    with pytest.raises(LabError, match=r"dataset, train image 7 is \(3, 8, 9\).*the first image \(3, 8, 10\)"):
        of_torch(Items(wide), Items(list(PIXELS))).images("train", torch.arange(8))
    source = of_torch(Items(list(PIXELS)), Items(list(PIXELS)))
    source._read["test"] = lambda number: 1 / 0
    with pytest.raises(LabError, match="dataset, test image 3 cannot be read: ZeroDivisionError"):
        source.images("test", torch.tensor([3]))


def test_labels_that_no_set_has_classes_for_are_refused_at_once():
    """A name was built for every number."""
    images = torch.zeros(6, 1, 8, 8, dtype=torch.uint8)
    data = TensorDataset(images, torch.tensor([0, 1, 2, 0, 1, 200_000_000]))
    with pytest.raises(LabError, match=r"labels go up to 200,000,000, but there are 6"):
        of_torch(data, data)
