import errno
import hashlib
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dne_lab.core import config
from dne_lab.core.errors import LabError
from dne_lab.data.datasets import NAMED, Named, digits, digits100, npz, open_source
from dne_lab.data.source import CIFAR_MEAN, CIFAR_STD, ArraySource, channel_statistics
from dne_lab.data.stream import from_config, stream
from dne_lab.measure import cost, learning_cost

RNG = np.random.default_rng(0)


def arrays(shape=(4, 4, 3), per_class=3, classes=2):
    labels = np.repeat(np.arange(classes), per_class)
    images = RNG.integers(0, 256, (len(labels), *shape), dtype=np.uint8)
    return images, labels, images[::3].copy(), labels[::3].copy()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 5), (1, 4, 5)),
        ((4, 5, 3), (3, 4, 5)),
        ((3, 4, 5), (3, 4, 5)),
        ((4, 5, 1), (1, 4, 5)),
        ((1, 4, 5), (1, 4, 5)),
    ],
)
def test_every_layout_gives_the_same_pixels(shape, expected):
    given = arrays(shape)
    source = ArraySource(*given)
    assert source.shape == expected
    image = source.images("train", torch.tensor([2]))
    assert image.dtype == torch.uint8
    assert image.shape == (1, *expected)
    wanted = given[0][2]
    wanted = wanted[None] if wanted.ndim == 2 else wanted.transpose(2, 0, 1) if shape[0] == 4 else wanted
    assert np.array_equal(image[0].numpy(), wanted)


def test_tensors_and_class_names_are_taken_and_the_source_keeps_its_own_copy():
    given = [torch.from_numpy(a) for a in arrays()]
    source = ArraySource(*given, class_names=["cat", "dog"])
    before = source.images("train", torch.arange(6))
    given[0].zero_()
    assert torch.equal(source.images("train", torch.arange(6)), before)
    assert source.classes == ("cat", "dog")
    assert source.labels("train").dtype == np.int64


def test_mean_and_deviation_are_those_of_the_training_images():
    given = arrays()
    source = ArraySource(*given)
    assert np.allclose(source.mean, given[0].mean(axis=(0, 1, 2)) / 255, atol=1e-12)
    assert np.allclose(source.std, given[0].std(axis=(0, 1, 2)) / 255, atol=1e-12)
    assert channel_statistics(torch.full((2, 1, 3, 3), 51, dtype=torch.uint8)) == ((0.2,), (1.0,))


def replaced(position, value):
    given = list(arrays())
    given[position] = value
    return given


BAD = {
    "float images": (replaced(0, arrays()[0] / 255), "train_images has type float64"),
    "int64 images": (replaced(2, arrays()[2].astype(np.int64)), "test_images has type int64"),
    "four channels": (arrays((4, 4, 4)), "neither axis 1 nor axis 3"),
    "ambiguous": (arrays((3, 4, 3)), "both could be the channels"),
    "two axes": (replaced(0, np.zeros((6, 4), np.uint8)), "shape (6, 4)"),
    "no images": (replaced(0, np.zeros((0, 4, 4, 3), np.uint8)), "no images"),
    "ragged": (replaced(0, [np.zeros((2, 2), np.uint8), np.zeros((3, 2), np.uint8)]), "same size"),
    "other test size": (replaced(2, np.zeros((2, 5, 5, 3), np.uint8)), "test images (3, 5, 5)"),
    "label count": (replaced(1, np.array([0, 1])), "6 images, 2 labels"),
    "float labels": (replaced(1, np.zeros(6)), "whole number"),
    "negative label": (replaced(1, np.array([0, 0, 0, 1, 1, -1])), "from -1 to 1"),
    "gap in labels": (replaced(1, np.array([0, 0, 0, 2, 2, 2])), "without train images: 1 (1)"),
    "untested class": (replaced(3, np.array([0, 0])), "without test images: 1 (1)"),
    "unknown test class": (replaced(3, np.array([0, 7])), "test labels run from 0 to 7"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_arrays_say_what_is_wrong(name):
    given, message = BAD[name]
    with pytest.raises(LabError) as error:
        ArraySource(*given)
    assert message in str(error.value)


def test_more_bad_arrays():
    with pytest.raises(LabError, match="labels run from 0 to 1: 1 classes"):
        ArraySource(*arrays(), class_names=["only one"])
    with pytest.raises(LabError, match="'a' is the name of two classes"):
        ArraySource(*arrays(), class_names=["a", "a"])
    with pytest.raises(LabError, match="give 3 numbers"):
        ArraySource(*arrays(), mean=[0.5], std=[0.5])
    with pytest.raises(LabError, match="unknown split 'valid'"):
        ArraySource(*arrays()).images("valid", torch.tensor([0]))
    with pytest.raises(LabError, match="missing test_labels"):
        open_source(dict(zip(("train_images", "train_labels", "test_images"), arrays(), strict=False)))
    with pytest.raises(LabError, match="3 arrays given"):
        open_source(arrays()[:3])


def save(path: Path, **changes):
    names = ("train_images", "train_labels", "test_images", "test_labels")
    stored = dict(zip(names, arrays(), strict=True)) | {"class_names": np.array(["cat", "dog"])} | changes
    np.savez(path, **{name: value for name, value in stored.items() if value is not None})
    return stored


def test_npz_round_trip(tmp_path):
    stored = save(tmp_path / "a.npz")
    for source in (
        npz(tmp_path / "a.npz"),
        open_source(str(tmp_path / "a.npz")),
        open_source("npz", path=tmp_path / "a.npz"),
    ):
        assert source.classes == ("cat", "dog")
        assert (source.name, source.path) == ("npz", str(tmp_path / "a.npz"))
        assert np.array_equal(source.images("test", torch.arange(2)).permute(0, 2, 3, 1).numpy(), stored["test_images"])
        assert np.array_equal(source.labels("train"), stored["train_labels"])
    save(tmp_path / "b.npz", class_names=None)
    assert npz(tmp_path / "b.npz").classes == ("0", "1")


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


def test_npz_never_unpickles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(Path("a.npz"), class_names=np.array([Bomb(), Bomb()], dtype=object))
    with pytest.raises(LabError, match="Python objects are not read"):
        npz("a.npz")
    Path("b.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(LabError, match="cannot be read"):
        npz("b.npz")
    assert not Path("unpickled").exists()


def test_bad_npz_files(tmp_path):
    with pytest.raises(LabError, match=r"no such file\. Expected an .npz with the arrays train_images"):
        npz(tmp_path / "none.npz")
    save(tmp_path / "a.npz", test_labels=None)
    with pytest.raises(LabError, match="no test_labels among its arrays"):
        npz(tmp_path / "a.npz")
    save(tmp_path / "b.npz", train_images=arrays()[0].astype(np.float32))
    with pytest.raises(LabError, match=r"b\.npz: train_images has type float32"):
        npz(tmp_path / "b.npz")
    np.save(tmp_path / "c.npy", arrays()[0])
    (tmp_path / "c.npy").rename(tmp_path / "c.npz")
    save(tmp_path / "d.npz")
    (tmp_path / "d.npz").write_bytes((tmp_path / "d.npz").read_bytes()[:400])
    (tmp_path / "e.npz").write_bytes(b"")
    names = ("train_images", "train_labels", "test_images", "test_labels")
    np.savez_compressed(tmp_path / "f.npz", **dict(zip(names, arrays((32, 32)), strict=True)))
    damaged = bytearray((tmp_path / "f.npz").read_bytes())
    damaged[1000:1400] = bytes(400)
    (tmp_path / "f.npz").write_bytes(bytes(damaged))
    for name in "cdef":
        with pytest.raises(LabError, match=f"{name}.npz: cannot be read"):
            npz(tmp_path / f"{name}.npz")


def test_digits_are_scikit_learns_in_a_fixed_stratified_split():
    from sklearn.datasets import load_digits

    source = digits()
    assert source.shape == (1, 8, 8)
    assert source.classes == tuple("0123456789")
    train, test = source.labels("train"), source.labels("test")
    assert len(train) + len(test) == 1797
    for number in range(10):
        count = (train == number).sum() + (test == number).sum()
        assert (test == number).sum() == round(0.3 * count)
    pixels = torch.cat([source.images(split, torch.arange(len(source.labels(split)))) for split in ("train", "test")])
    assert (pixels.min(), pixels.max()) == (0, 255)
    mine = sorted(map(bytes, pixels.numpy().reshape(1797, 64)))
    theirs = sorted(map(bytes, np.round(load_digits().images * 255 / 16).astype(np.uint8).reshape(1797, 64)))
    assert mine == theirs
    # the split is the same on every machine: a change would make every committed record wrong
    digest = hashlib.sha256(test.tobytes() + source.images("test", torch.arange(len(test))).numpy().tobytes())
    assert digest.hexdigest()[:16] == "76c4f8cb30d02d4c"


def test_digits100_holds_two_digits_of_its_own_split_at_random_heights():
    source, small = digits100(), digits()
    assert source.shape == (1, 16, 16)
    assert source.classes == tuple(f"{n:02d}" for n in range(100))
    seen = {}
    for split, count in (("train", 60), ("test", 20)):
        labels = source.labels(split)
        assert (np.bincount(labels) == count).all()
        images = source.images(split, torch.arange(len(labels)))[:, 0].numpy()
        singles = small.images(split, torch.arange(len(small.labels(split))))[:, 0].numpy()
        known = {bytes(image.tobytes()): int(label) for image, label in zip(singles, small.labels(split), strict=True)}
        heights = set()
        for image, label in zip(images[::7], labels[::7], strict=True):
            for side, digit in enumerate(divmod(int(label), 10)):
                half = image[:, 8 * side : 8 * side + 8]
                tops = [top for top in range(9) if known.get(half[top : top + 8].tobytes()) == digit]
                assert any(half[:top].sum() + half[top + 8 :].sum() == 0 for top in tops)
                heights.update(tops)
        assert heights == set(range(9))
        seen[split] = {image.tobytes() for image in images}
        assert len(seen[split]) == len(images)
    assert not seen["train"] & seen["test"]
    pixels = np.concatenate([source.images(s, torch.arange(2000)).numpy() for s in ("train", "test")])
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == "70dd9aacd2021251"
    other = digits100(seed=1).images("train", torch.arange(100))
    assert not torch.equal(other, source.images("train", torch.arange(100)))


def test_names_paths_and_what_is_none_of_them(tmp_path):
    assert open_source("digits").name == "digits"
    source = ArraySource(*arrays())
    assert open_source(source) is source
    assert open_source(tuple(arrays())).name == "arrays"
    with pytest.raises(LabError, match="Did you mean digits"):
        open_source("digit")
    with pytest.raises(LabError, match="needs a path"):
        open_source("folder")
    with pytest.raises(LabError, match="from Python"):
        open_source("arrays")
    with pytest.raises(LabError, match="only a folder's images are resized"):
        open_source("digits", size=16)
    with pytest.raises(LabError, match="neither a folder"):
        open_source(str(tmp_path / "nothing"))
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(LabError, match="neither a folder"):
        open_source(tmp_path / "file.txt")
    with pytest.raises(LabError, match="data is a int"):
        open_source(3)


def test_a_row_is_all_that_a_data_set_needs_to_have_a_name(monkeypatch):
    """It opens by its name with tasks of its own, is counted without being opened, and messages know it."""
    made, opened = ArraySource(*arrays(), name="mine", path="there"), []

    def mine(path, download):
        opened.append((path, download))
        return made

    each = np.bincount(made.labels("train"))[0]
    tasks = (1, len(made.classes) - 1)
    monkeypatch.setitem(NAMED, "mine", Named(mine, made.shape, tasks, files=True, each=int(each)))
    data = config.Data("mine", tasks=tasks)
    assert cost.shape_of(data) == made.shape and learning_cost._stream(config.Config(data=data)).tasks == tasks
    assert not opened
    own = stream("mine", path="there")
    assert (own.source, own.tasks, opened) == (made, tasks, [("there", False)])
    assert from_config(own.config()).source is made
    with pytest.raises(LabError, match="Leave size out for mine"):
        open_source("mine", size=16)
    with pytest.raises(LabError, match="mine takes no path"):
        monkeypatch.setitem(NAMED, "mine", NAMED["mine"]._replace(files=False))
        open_source("mine", path="there")
    with pytest.raises(LabError, match=r"Did you mean mine.*Allowed: .*mine"):
        open_source("mins")


def test_missing_cifar_says_where_how_and_downloads_nothing(tmp_path, monkeypatch):
    import torchvision.datasets.cifar as module

    def refuse(*args, **kwargs):
        raise AssertionError("downloaded without being asked")

    monkeypatch.setattr(module, "download_and_extract_archive", refuse)
    with pytest.raises(LabError) as error:
        open_source("cifar100", path=str(tmp_path))
    for part in (str(tmp_path / "cifar-100-python"), "train, test and meta", "download=True"):
        assert part in str(error.value)
    with pytest.raises(AssertionError, match="without being asked"):
        open_source("cifar100", path=str(tmp_path), download=True)


def test_cifar_files_are_read_and_damaged_ones_refused(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR100

    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    names = [f"class{n:02d}" for n in range(100)]
    pixels = {split: RNG.integers(0, 256, (200, 3072), dtype=np.uint8) for split in ("train", "test")}
    labels = [n % 100 for n in range(200)]
    contents = {split: {"data": pixels[split], "fine_labels": labels} for split in pixels}
    contents["meta"] = {"fine_label_names": names}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
    sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in contents}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": sums["meta"]})

    source = open_source("cifar100", path=str(tmp_path))
    assert (source.name, source.path, source.shape) == ("cifar100", str(tmp_path), (3, 32, 32))
    assert source.classes == tuple(names)
    assert (source.mean, source.std) == (CIFAR_MEAN, CIFAR_STD)
    assert np.array_equal(source.images("test", torch.tensor([5]))[0].numpy(), pixels["test"][5].reshape(3, 32, 32))
    assert source.labels("train").tolist() == labels

    (folder / "test").write_bytes((folder / "test").read_bytes()[:-10])
    with pytest.raises(LabError, match="not complete"):
        open_source("cifar100", path=str(tmp_path))


def test_cifar_may_lie_in_an_npz_under_its_own_name(tmp_path):
    labels = np.arange(100)
    arrays = {"train_images": np.zeros((100, 32, 32, 3), np.uint8), "train_labels": labels}
    np.savez(tmp_path / "c.npz", test_images=arrays["train_images"], test_labels=labels, **arrays)
    source = open_source("cifar100", path=str(tmp_path / "c.npz"))
    assert (source.name, source.mean, source.std) == ("cifar100", CIFAR_MEAN, CIFAR_STD)
    np.savez(tmp_path / "d.npz", **{k: v[:50] for k, v in {**arrays, "test_images": arrays["train_images"]}.items()},
             test_labels=labels[:50])  # fmt: skip
    with pytest.raises(LabError, match="not CIFAR-100: it has 50 classes"):
        open_source("cifar100", path=str(tmp_path / "d.npz"))


def test_cifar_is_found_as_an_npz_in_the_default_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels, pixels = np.arange(100), np.zeros((100, 32, 32, 3), np.uint8)
    (tmp_path / "datasets").mkdir()
    file = tmp_path / "datasets" / "cifar100.npz"
    np.savez(file, train_images=pixels, train_labels=labels, test_images=pixels, test_labels=labels)
    assert open_source("cifar100").path == str(file)
    (tmp_path / "datasets" / "cifar-100-python").mkdir()  # the original comes first, also when it is not complete
    with pytest.raises(LabError, match="not complete"):
        open_source("cifar100")


def test_class_names_may_be_bytes_or_begin_with_a_byte_order_mark(tmp_path):
    save(tmp_path / "a.npz", class_names=np.array([b"cat", "d\u00f6g".encode()]))
    assert npz(tmp_path / "a.npz").classes == ("cat", "d\u00f6g")
    save(tmp_path / "b.npz", class_names=np.array(["\ufeffcat", "do\u0308g"]))
    assert npz(tmp_path / "b.npz").classes == ("cat", "d\u00f6g")


def test_an_npz_that_would_fill_the_memory_is_refused(tmp_path):
    """Some hundred kilobytes that say and hold 280 MB; and a small file that says it has the shape of a large one."""
    stored = save(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, value in stored.items():
            if name == "train_images":
                continue
            file = io.BytesIO()
            np.save(file, value)
            packed.writestr(f"{name}.npy", file.getvalue())
        with packed.open("train_images.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (28, 10**7)})
            for _ in range(28):
                member.write(bytes(10**7))
    with pytest.raises(LabError, match="unpacked"):
        npz(tmp_path / "bomb.npz")
    with zipfile.ZipFile(tmp_path / "lies.npz", "w") as packed:
        for name, value in stored.items():
            file = io.BytesIO()
            shape = (10**15, 8, 8) if name == "train_images" else value.shape
            head = {"descr": value.dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, head)
            packed.writestr(f"{name}.npy", file.getvalue() + value.tobytes())
    with pytest.raises(LabError, match=r"train_images\.npy says it has the shape"):
        npz(tmp_path / "lies.npz")


def test_a_source_tells_its_images_apart_and_keeps_its_place(tmp_path, monkeypatch):
    save(tmp_path / "a.npz")
    monkeypatch.chdir(tmp_path)
    source = npz("a.npz")
    assert (source.path, source.given) == (str(tmp_path / "a.npz"), "a.npz")
    digests = source.digests("train")
    assert digests.shape == (len(source.labels("train")), 8) and np.array_equal(npz("a.npz").digests("train"), digests)
    images = source.images("train", torch.arange(len(digests)))
    same = (images[:, None] == images[None]).flatten(2).all(2).numpy()
    assert np.array_equal((digests[:, None] == digests[None]).all(2), same)


def test_wrong_kinds_of_values_are_named():
    import dne_lab as lab

    images, labels = torch.zeros(6, 8, 8, dtype=torch.uint8), torch.arange(6) % 3
    right = (images, labels, images, labels)
    with pytest.raises(LabError, match="images"):
        lab.stream((torch.zeros(6, 3, 8, 8, dtype=torch.bfloat16), *right[1:]), base=3)
    with pytest.raises(LabError, match="base"):
        lab.stream(right, base="3")
    with pytest.raises(LabError, match="validation"):
        lab.stream(right, base=3, validation="0.2")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (np.array("a"), r"has shape \(\): give one name per class"),
        (np.array(3), r"has shape \(\)"),
        (torch.zeros(2, 2), r"has shape \(2, 2\)"),
        ("ab", "give one name per class, in a list"),
        (7, "give one name per class, in a list"),
        ({0: "a", 1: "b"}, "give one name per class, in a list"),
        (range(10**12), "has 1,000,000,000,000 names: up to 1,000,000 classes"),
    ],
)
def test_class_names_that_are_no_list_of_names(names, said):
    with pytest.raises(LabError, match=said):
        open_source((*arrays(), names))


@pytest.mark.parametrize("value", [torch.eye(6).to_sparse(), torch.empty(6, 8, 8, device="meta")])
def test_tensors_that_are_no_dense_ones(value):
    with pytest.raises(LabError, match="train_images"):
        ArraySource(value, *arrays()[1:])


@pytest.mark.parametrize("shape", [(), (2, 2)])
def test_class_names_of_another_shape_in_an_npz(shape, tmp_path):
    for number, names in enumerate((np.zeros(shape, np.int64), np.full(shape, "cat"))):
        save(tmp_path / f"{number}.npz", class_names=names)
        with pytest.raises(LabError, match=rf"{number}\.npz: class_names has shape"):
            npz(tmp_path / f"{number}.npz")


def with_member(path: Path, name: str, content: bytes) -> Path:
    """An .npz that is right but for one array, whose file in it is given."""
    save(path, **{name: None})
    with zipfile.ZipFile(path, "a") as packed:
        packed.writestr(f"{name}.npy", content)
    return path


HEADERS = [b"(" * 59, b"{" * 500, b"'" * 3, b"{'descr': [[[[", b"\n  a\n b", b"\0" * 40, b"1" * 5000]


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("text", HEADERS)
def test_a_header_of_an_array_that_is_none(text, version, tmp_path):
    length = struct.pack("<H" if version == 1 else "<I", len(text) + 1)
    content = b"\x93NUMPY" + bytes([version, 0]) + length + text + b"\n"
    with pytest.raises(LabError, match="cannot be read"):
        npz(with_member(tmp_path / "a.npz", "train_labels", content))


def test_an_array_of_any_length_that_takes_nothing(tmp_path):
    for number, kind in enumerate(("|S0", "<U0", "|V0")):
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": (10**13,)})
        with pytest.raises(LabError, match="which holds nothing"):
            npz(with_member(tmp_path / f"{number}.npz", "class_names", file.getvalue()))


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("what", ["pictures", "a.npz"])
def test_a_place_whose_server_is_away_is_named(what, number, tmp_path, monkeypatch):
    place, real = str(tmp_path / what), os.stat

    def stat(path, *args, **how):
        if str(path) == place:
            raise OSError(number, os.strerror(number), path)
        return real(path, *args, **how)

    monkeypatch.setattr(os, "stat", stat)
    for given in ({"data": place}, {"data": "folder", "path": place}, {"data": "npz", "path": place}):
        with pytest.raises(LabError, match=rf"{what} cannot be read: {os.strerror(number).lower()}"):
            open_source(**given)
