"""Whether data are those that a run has learned from, and what is said where they are not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dne_lab.data import image_folder
from dne_lab.data.datasets import open_source
from dne_lab.data.identity import YOUNGER, Images, fingerprint, images_sha256, in_order, numbers_now, unlike
from dne_lab.data.source import ArraySource
from dne_lab.data.stream import ClassStream, stream


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for split, count in (("train", 4), ("test", 2)):
        for place, name in enumerate(("ant", "bee", "cow")):
            (tmp_path / "T" / split / name).mkdir(parents=True)
            for number in range(count):
                picture(100 * place + 10 * number + len(split)).save(tmp_path / "T" / split / name / f"{number}.png")
    return tmp_path / "T"


def now(tree: Path) -> Images:
    return Images.of(open_source(tree))


def arrays(seed: int = 0, **changes: object) -> ArraySource:
    rng = np.random.default_rng(seed)
    labels = np.arange(12) % 3
    given = {
        "train_images": rng.integers(0, 256, (12, 5, 5), dtype=np.uint8), "train_labels": labels,
        "test_images": rng.integers(0, 256, (6, 5, 5), dtype=np.uint8), "test_labels": labels[:6],
    } | changes  # fmt: skip
    return ArraySource(**given)  # type: ignore[arg-type]


def test_the_same_images_are_the_same_wherever_they_lie(tree: Path, tmp_path: Path) -> None:
    before = now(tree)
    shutil.copytree(tree, tmp_path / "moved")
    assert unlike(before, now(tmp_path / "moved")) == []
    assert fingerprint(stream(tree, tasks="2,1")) == fingerprint(stream(tmp_path / "moved", tasks="2,1"))
    assert unlike(Images.of(arrays()), Images.of(arrays())) == []


def test_what_is_renamed_swapped_new_or_gone_is_named(tree: Path) -> None:
    before, stamp = now(tree), fingerprint(stream(tree, base=3))
    (tree / "train" / "cow").rename(tree / "train" / "crow")
    (tree / "test" / "cow").rename(tree / "test" / "crow")
    assert unlike(before, now(tree)) == ["class 'cow' is called 'crow' here"]
    assert [name for name, value in fingerprint(stream(tree, base=3)).items() if value != stamp[name]] == [
        "class_names"
    ]
    (tree / "train" / "ant" / "1.png").unlink()
    picture(999).save(tree / "train" / "bee" / "2.png")
    picture(998).save(tree / "test" / "bee" / "7.png")
    told = "; ".join(unlike(before, now(tree)))
    for part in ("ant/1.png is gone", "bee/2.png has other content", "test images bee/7.png is new"):
        assert part in told
    shutil.copytree(tree / "train" / "ant", tree / "train" / "dog")
    shutil.copytree(tree / "test" / "ant", tree / "test" / "dog")
    assert "3 classes there, 4 here" in unlike(before, now(tree))


def rename(tree: Path, old: str, new: str) -> None:
    for split in ("train", "test"):
        (tree / split / old).rename(tree / split / new)


def test_a_class_whose_new_name_moves_the_others_is_one_renamed_class(tree: Path) -> None:
    before = now(tree)
    rename(tree, "ant", "zebu")  # bee and cow get other numbers, but are what they were
    assert unlike(before, now(tree)) == ["class 'ant' is called 'zebu' here", "the classes come in another order"]
    assert not in_order(before, now(tree))
    picture(999).save(tree / "train" / "bee" / "2.png")
    assert "of the training images bee/2.png has other content" in unlike(before, now(tree))
    rename(tree, "zebu", "adder")
    assert in_order(before, now(tree))


def test_a_class_that_is_gone_or_new_is_named_once_and_not_image_by_image(tree: Path) -> None:
    before = now(tree)
    shutil.rmtree(tree / "train" / "bee")
    shutil.rmtree(tree / "test" / "bee")
    assert unlike(before, now(tree)) == [
        "3 classes there, 2 here", "class 'bee' is gone", "the classes come in another order"
    ]  # fmt: skip
    for split in ("train", "test"):
        (tree / split / "dog").mkdir()
        picture(7).save(tree / split / "dog" / "0.png")
    assert unlike(before, now(tree))[:2] == ["class 'bee' is gone", "class 'dog' is new"]


def test_two_files_that_change_places_are_seen(tree: Path) -> None:
    before = now(tree)
    one, other = tree / "train" / "ant" / "0.png", tree / "train" / "bee" / "0.png"
    contents = one.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    one.write_bytes(contents[1])
    (told,) = unlike(before, now(tree))
    assert "ant/0.png" in told and "bee/0.png" in told and "other content" in told


def test_other_arrays_are_named() -> None:
    before, same = Images.of(arrays()), arrays()
    images, labels = same.images("train", torch.arange(12)).numpy()[:, 0], same.labels("train")
    changed = images.copy()
    changed[4, 0, 0] ^= 1
    for source, part in (
        (arrays(seed=1), "12 of 12 training images are others"),
        (arrays(train_images=changed), "1 of 12 training images are others, the first is number 4 (class 1)"),
        (arrays(train_images=images[::-1], train_labels=labels[::-1]), "training images come in another order"),
        (arrays(train_images=images[:9], train_labels=labels[:9]), "12 training images there, 9 here"),
        (arrays(class_names=["0", "1", "two"]), "class '2' is called 'two' here"),
    ):
        assert part in "; ".join(unlike(before, Images.of(source)))


def test_images_go_through_a_file(tree: Path) -> None:
    for images in (now(tree), Images.of(arrays())):
        tensors, info = images.parts()
        back = Images.from_parts(tensors, json.loads(json.dumps(info)))
        assert unlike(images, back) == [] and back.files == images.files and back.classes == images.classes


def test_unchanged_files_are_not_read_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = now(tree)
    picture(999).save(tree / "train" / "bee" / "2.png")
    source = stream(tree, base=3).source
    read: list[str] = []
    real = image_folder._digest
    monkeypatch.setattr(image_folder, "_digest", lambda file: (read.append(Path(file).name), real(file))[1])
    assert unlike(before, Images.of(source, before)) == ["of the training images bee/2.png has other content"]
    assert read == ["2.png"]


def test_images_are_found_again_by_file_or_by_content(tree: Path) -> None:
    before = now(tree)
    (tree / "train" / "ant" / "1.png").unlink()
    assert numbers_now(before, now(tree), "train").tolist() == [0, -1, *range(1, 11)]
    images, labels = arrays().images("train", torch.arange(12)).numpy()[:, 0], np.arange(12) % 3
    later = Images.of(arrays(train_images=images[1:], train_labels=labels[1:]))
    assert numbers_now(Images.of(arrays()), later, "train").tolist() == [-1, *range(11)]


def test_a_fingerprint_is_that_of_the_streams_own_images() -> None:
    whole = ClassStream(arrays(), (2, 1))
    images = arrays().images("train", torch.arange(12)).numpy()[:, 0].copy()
    images[2] = 0  # of class 2, which the first task does not have
    other = ClassStream(arrays(train_images=images), (2, 1))
    assert fingerprint(whole) != fingerprint(other) and fingerprint(whole[:1]) == fingerprint(other[:1])
    assert set(YOUNGER) <= fingerprint(whole).keys()
    held = ClassStream(arrays(), (2, 1), validation=0.25)
    assert fingerprint(held)["test"] == 3 and fingerprint(held) == fingerprint(
        ClassStream(arrays(), (2, 1), "identity", 0.25)
    )


def test_one_digest_whatever_the_order_of_classes_and_tasks() -> None:
    one = stream("digits", tasks="4,6")
    digest = images_sha256(one)
    assert digest == images_sha256(one.joint())
    assert digest == images_sha256(stream("digits", tasks="5,5", order=3))
    assert digest != images_sha256(one[:1]) != images_sha256(stream("digits100", tasks="50,50"))
