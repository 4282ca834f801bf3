import contextlib
import errno
import os
import resource
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dne_lab as lab
from dne_lab.core.errors import LabError
from dne_lab.data import image_file, image_folder
from dne_lab.data.datasets import open_source
from dne_lab.data.identity import Images
from dne_lab.data.image_folder import FolderSource
from dne_lab.data.source import CIFAR_MEAN, IMAGENET_MEAN, digest
from dne_lab.training.run_folder import RunFolder

RNG = np.random.default_rng(1)


def picture(height=6, width=6, channels=3):
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def tree(root, classes=("cat", "dog"), test="test", **kwargs):
    """train/ with 3 and test/ with 2 images a class; returns the pixels by (split, class, file)."""
    pixels = {}
    for split, count in (("train", 3), (test, 2)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels[split, name, number] = picture(**kwargs)
                Image.fromarray(pixels[split, name, number]).save(root / split / name / f"{number}.png")
    return pixels


def first(source):
    """The first training image as (H, W, 3)."""
    return source.images("train", torch.tensor([0]))[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("test", ["test", "val"])
@pytest.mark.parametrize("keep", [0, 10**9])
def test_images_and_labels_of_both_splits_in_any_order(tmp_path, test, keep):
    pixels = tree(tmp_path, test=test)
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    source = FolderSource(tmp_path, keep=keep)
    assert (source.name, source.path, source.shape) == ("folder", str(tmp_path), (3, 6, 6))
    assert source.classes == ("cat", "dog")
    assert source.mean == IMAGENET_MEAN
    assert source.labels("train").tolist() == [0, 0, 0, 1, 1, 1]
    assert source.labels("test").tolist() == [0, 0, 1, 1]
    for order in ([4, 0, 4, 2], [5, 4, 3, 2, 1, 0]):  # twice: the second time partly from memory
        images = source.images("train", torch.tensor(order))
        for image, number in zip(images, order, strict=True):
            wanted = pixels["train", source.classes[number // 3], number % 3]
            assert np.array_equal(image.permute(1, 2, 0).numpy(), wanted)
    assert np.array_equal(source.images("test", torch.tensor([3]))[0].permute(1, 2, 0).numpy(), pixels[test, "dog", 1])


def test_many_files_are_decoded_by_threads_in_order(tmp_path, monkeypatch):
    pixels = tree(tmp_path, classes=[f"c{n:02d}" for n in range(30)])
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    images = FolderSource(tmp_path, keep=0).images("train", torch.arange(90))
    wanted = np.stack([pixels[key] for key in sorted(pixels) if key[0] == "train"])
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), wanted)


def test_images_kept_in_memory_are_read_once(tmp_path):
    tree(tmp_path)
    kept, lazy = FolderSource(tmp_path), FolderSource(tmp_path, keep=0)
    before = kept.images("train", torch.arange(6))
    shutil.rmtree(tmp_path / "train")
    assert torch.equal(kept.images("train", torch.arange(6)), before)
    with pytest.raises(LabError, match="cannot be decoded"):
        lazy.images("train", torch.arange(6))


def test_images_of_32_pixels_are_normalised_as_cifar(tmp_path):
    tree(tmp_path, height=32, width=32)
    assert FolderSource(tmp_path).mean == CIFAR_MEAN
    assert FolderSource(tmp_path, size=64).mean == IMAGENET_MEAN


def test_size_scales_the_shorter_side_then_crops_the_centre(tmp_path):
    tree(tmp_path, height=6, width=10)
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = (200, 100, 50)  # the centre square has one colour; bicubic rings two pixels deep
    Image.fromarray(wide).save(tmp_path / "train" / "cat" / "0.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "train" / "cat" / "1.png")
    source = open_source(tmp_path, size=8)
    assert (source.shape, source.size) == ((3, 8, 8), 8)
    images = source.images("train", torch.arange(6))
    assert images.shape == (6, 3, 8, 8)
    for image in images[:2]:
        assert (image.permute(1, 2, 0)[2:-2, 2:-2] == torch.tensor([200, 100, 50])).all()
    assert FolderSource(tmp_path, size=7).images("test", torch.arange(4)).shape == (4, 3, 7, 7)  # odd sizes too


def test_different_sizes_without_size_name_the_file(tmp_path):
    tree(tmp_path)
    Image.fromarray(picture(6, 7)).save(tmp_path / "test" / "dog" / "1.png")
    with pytest.raises(LabError) as error:
        FolderSource(tmp_path)
    for part in (str(tmp_path / "test" / "dog" / "1.png"), "7 x 6", "6 x 6", "Pass size"):
        assert part in str(error.value)


def replace_first(tmp_path, image, suffix="png"):
    tree(tmp_path)
    (tmp_path / "train" / "cat" / "0.png").unlink()
    image.save(tmp_path / "train" / "cat" / f"0.{suffix}")
    return first(FolderSource(tmp_path))


def test_grey_becomes_three_equal_channels(tmp_path):
    grey = picture()[:, :, 0]
    assert np.array_equal(replace_first(tmp_path, Image.fromarray(grey)), np.stack([grey] * 3, axis=2))


def test_palette_images_get_their_colours(tmp_path):
    pixels = np.zeros((6, 6, 3), np.uint8)
    pixels[:3], pixels[3:] = (255, 0, 10), (0, 200, 30)
    assert np.array_equal(replace_first(tmp_path, Image.fromarray(pixels).quantize(4)), pixels)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_images_are_scaled_not_clipped(tmp_path, suffix):
    values = np.arange(36, dtype=np.uint16).reshape(6, 6) * (65535 // 35)
    values[-1, -1] = 65535
    out = replace_first(tmp_path, Image.fromarray(values), suffix)
    assert np.array_equal(out[:, :, 0], np.round(values / 257).astype(np.uint8))
    assert (out[:, :, 0] == out[:, :, 2]).all()


def test_16_bit_colour_files_are_scaled_too(tmp_path):
    """Pillow cannot write these, so the file is made by hand (PNG, 16 bits a sample, RGB)."""
    values = RNG.integers(0, 65536, (6, 6, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)  # filter 0 in front of each row
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 6, 6, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    data = b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    tree(tmp_path)
    (tmp_path / "train" / "cat" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert np.abs(first(FolderSource(tmp_path)) - values / 257).max() <= 1  # Pillow keeps the high byte


def test_transparency_is_laid_over_white(tmp_path):
    pixels = picture(channels=4)
    pixels[:, :3, 3], pixels[:, 3:, 3] = 255, 0
    out = replace_first(tmp_path, Image.fromarray(pixels))
    assert np.array_equal(out[:, :3], pixels[:, :3, :3])
    assert (out[:, 3:] == 255).all()


def test_cmyk_and_one_bit_files(tmp_path):
    tree(tmp_path)
    Image.fromarray(picture()).convert("CMYK").save(tmp_path / "train" / "cat" / "0.jpg")
    Image.fromarray(np.eye(6, dtype=np.uint8) * 255).convert("1").save(tmp_path / "train" / "cat" / "1.png")
    images = FolderSource(tmp_path).images("train", torch.arange(7))
    assert set(images[2].unique().tolist()) == {0, 255}


def test_floating_point_images_are_refused(tmp_path):
    with pytest.raises(LabError, match=r"0\.tiff holds floating-point pixels"):
        replace_first(tmp_path, Image.fromarray(np.ones((6, 6), np.float32)), "tiff")
    shutil.rmtree(tmp_path)
    with pytest.raises(LabError, match="values from 0 to 70000"):
        replace_first(tmp_path, Image.fromarray(np.eye(6, dtype=np.int32) * 70000), "tiff")


@pytest.mark.parametrize("size", [None, 6])
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tiff", "gif", "webp", "ppm"])
def test_truncated_files_are_named(tmp_path, suffix, size):
    tree(tmp_path, height=60, width=60)
    file = tmp_path / "train" / "dog" / f"3.{suffix}"
    Image.fromarray(picture(60, 60)).save(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(LabError, match=rf"3\.{suffix} cannot be decoded"):
        FolderSource(tmp_path, size=size).images("train", torch.arange(7))


@pytest.mark.parametrize("content", [b"", b"not an image at all", b"\x89PNG\r\n\x1a\n"])
def test_files_that_are_no_images_are_named(tmp_path, content):
    tree(tmp_path)
    (tmp_path / "train" / "cat" / "0.png").write_bytes(content)
    with pytest.raises(LabError, match=r"0\.png cannot be decoded"):
        FolderSource(tmp_path, size=6).images("train", torch.arange(6))


def test_half_unpacked_folders(tmp_path):
    with pytest.raises(LabError, match=r"no such folder\. Expected train/CLASS/IMAGE"):
        FolderSource(tmp_path / "none")
    with pytest.raises(LabError, match=r"no train/ and no test/ or val/ \(found: nothing\)"):
        FolderSource(tmp_path)
    tree(tmp_path)
    (tmp_path / "test").rename(tmp_path / "elsewhere")
    with pytest.raises(LabError, match=r"has no test/ or val/ \(found: elsewhere, train\)"):
        FolderSource(tmp_path)
    (tmp_path / "test").mkdir()
    with pytest.raises(LabError, match="test has no class folders"):
        FolderSource(tmp_path)
    (tmp_path / "test").rmdir()
    (tmp_path / "elsewhere").rename(tmp_path / "val")
    (tmp_path / "val" / "dog").rename(tmp_path / "val" / "wolf")
    with pytest.raises(LabError, match=r"1 class folder\(s\) of .*train are not in .*val: dog"):
        FolderSource(tmp_path)
    shutil.copytree(tmp_path / "val" / "wolf", tmp_path / "val" / "dog")
    with pytest.raises(LabError, match=r"1 class folder\(s\) of .*val are not in .*train: wolf"):
        FolderSource(tmp_path)
    (tmp_path / "train" / "wolf").mkdir()
    with pytest.raises(LabError, match="wolf has no images"):
        FolderSource(tmp_path)


def test_a_size_that_is_none(tmp_path):
    tree(tmp_path)
    with pytest.raises(LabError, match="size = 0"):
        FolderSource(tmp_path, size=0)


# Files that are not read, and how that is said --------------------------------------------------------------------


def count(source, split="train"):
    return np.bincount(source.labels(split)).tolist()


def test_what_other_programs_leave_is_no_data(tmp_path):
    tree(tmp_path)
    cat = tmp_path / "train" / "cat"
    for name in (".ipynb_checkpoints", "@eaDir/0.png"):
        (cat / name).mkdir(parents=True)
        shutil.copy(cat / "0.png", cat / name / "copy.png")
    shutil.copy(cat / "0.png", cat / "._0.png")
    (tmp_path / "train" / "@eaDir").mkdir()
    shutil.copy(cat / "0.png", tmp_path / "train" / "@eaDir" / "copy.png")
    with pytest.warns(UserWarning, match="4 hidden") as said:
        source = FolderSource(tmp_path)
    assert count(source) == [3, 3] and source.classes == ("cat", "dog") and len(said) == 1


def test_files_that_are_not_read_are_counted_once(tmp_path):
    tree(tmp_path)
    cat = tmp_path / "train" / "cat"
    for name in ("a.heic", "b.heic", "c"):
        (cat / name).write_bytes(b"")
    (cat / "gone.png").symlink_to(cat / "nowhere.png")
    os.mkfifo(cat / "pipe.png")  # opening it would wait for ever
    shutil.copy(cat / "0.png", tmp_path / "train" / "loose.png")
    (tmp_path / "train" / "cow").symlink_to(tmp_path / "nowhere")
    with pytest.warns(UserWarning) as said:
        source = FolderSource(tmp_path)
    assert count(source) == [3, 3] and len(said) == 1
    for part in (
        "7 file(s)",
        "2 .heic",
        "1 without suffix",
        "2 broken link",
        "1 no regular file",
        "1 in no class folder",
    ):
        assert part in str(said[0].message)


def test_linked_folders_are_followed_but_not_in_circles(tmp_path):
    tree(tmp_path / "data")
    (tmp_path / "more").mkdir()
    Image.fromarray(picture()).save(tmp_path / "more" / "9.png")
    cat = tmp_path / "data" / "train" / "cat"
    (cat / "more").symlink_to(tmp_path / "more", target_is_directory=True)
    (cat / "round").symlink_to(cat, target_is_directory=True)
    with pytest.warns(UserWarning, match="1 link to a folder that is read already"):
        source = FolderSource(tmp_path / "data")
    assert count(source) == [4, 3] and source.images("train", torch.arange(7)).shape[0] == 7


def test_folders_that_link_to_each_other_are_read_once(tmp_path):
    """Nine of them have more than a million ways through them."""
    tree(tmp_path)
    cat = tmp_path / "train" / "cat"
    for one in range(9):
        (cat / f"f{one}").mkdir()
        Image.fromarray(picture()).save(cat / f"f{one}" / "0.png")
        for other in range(9):
            if other != one:
                (cat / f"f{one}" / f"a{other}").symlink_to(cat / f"f{other}", target_is_directory=True)
    with pytest.warns(UserWarning, match=r"72 file\(s\) left out \(72 link to a folder that is read already\)"):
        source = FolderSource(tmp_path)
    assert count(source) == [12, 3]
    assert source.names("train")[3:12] == [f"cat/f{one}/0.png" for one in range(9)]  # where they lie, by no link


@pytest.mark.parametrize("hidden", [False, True])
def test_folders_within_folders_have_no_end(tmp_path, hidden):
    """Far more than Python calls functions within functions."""
    tree(tmp_path)
    cat = tmp_path / "train" / "cat"
    places = [Path(f"{cat}/{'.x' if hidden else 'x'}{'/x' * depth}") for depth in range(1100)]
    for place in places:
        place.mkdir()
    shutil.copy(cat / "0.png", places[-1])
    try:
        with pytest.warns(UserWarning, match="1 hidden") if hidden else contextlib.nullcontext():
            assert count(FolderSource(tmp_path)) == [3 if hidden else 4, 3]
    finally:  # what removes temporary folders calls itself, too
        (places[-1] / "0.png").unlink()
        for place in reversed(places):
            place.rmdir()


def test_a_folder_that_is_hidden_may_be_linked_to(tmp_path):
    tree(tmp_path)
    cat = tmp_path / "train" / "cat"
    (cat / ".store").mkdir()
    Image.fromarray(picture()).save(cat / ".store" / "9.png")
    (cat / "more").symlink_to(cat / ".store", target_is_directory=True)
    with pytest.warns(UserWarning, match="1 hidden"):
        assert FolderSource(tmp_path).names("train")[3] == "cat/more/9.png"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_linked_folder_whose_server_is_away_is_named_and_not_left_out(tmp_path, number, monkeypatch):
    tree(tmp_path / "data")
    (tmp_path / "far").mkdir()
    link = tmp_path / "data" / "train" / "cat" / "far"
    link.symlink_to(tmp_path / "far", target_is_directory=True)
    real = os.scandir

    class Away:
        def __init__(self, entry):
            self.entry, self.name, self.path = entry, entry.name, entry.path

        def is_symlink(self):
            return self.entry.is_symlink()

        def is_dir(self):
            if self.path == str(link):
                raise OSError(number, os.strerror(number))
            return self.entry.is_dir()

        def is_file(self):
            return self.entry.is_file()

    monkeypatch.setattr(os, "scandir", lambda folder: contextlib.nullcontext(map(Away, real(folder))))
    with pytest.raises(LabError, match=f"cat/far cannot be read: {os.strerror(number).lower()}"):
        FolderSource(tmp_path / "data")


@pytest.mark.parametrize("what", ["train/cat/part", "train/dog", "train"])
def test_a_folder_that_may_not_be_read_is_named(tmp_path, what, monkeypatch):
    """Not by its mode: root reads everything."""
    tree(tmp_path)
    (tmp_path / "train" / "cat" / "part").mkdir()
    real = os.scandir

    def scandir(folder):
        if str(folder) == str(tmp_path / what):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(LabError, match=rf"{what} cannot be read: permission denied"):
        FolderSource(tmp_path)


def test_class_names_with_composed_and_decomposed_characters_are_the_same(tmp_path):
    composed, decomposed = "\u00e9lan", "e\u0301lan"
    tree(tmp_path, classes=("zebu", composed))
    (tmp_path / "test" / composed).rename(tmp_path / "test" / decomposed)  # as a Mac would have written it
    source = FolderSource(tmp_path)
    assert source.classes == ("zebu", composed) and count(source, "test") == [2, 2]
    pixels = source.images("test", torch.tensor([2]))[0].permute(1, 2, 0).numpy()
    assert np.array_equal(pixels, np.asarray(Image.open(tmp_path / "test" / decomposed / "0.png")))
    shutil.copytree(tmp_path / "test" / decomposed, tmp_path / "test" / composed)
    with pytest.raises(LabError, match="two class folders that are both"):
        FolderSource(tmp_path)


@pytest.mark.skipif(os.fsencode("\udce9") != b"\xe9", reason="names are bytes of UTF-8 here")
def test_class_names_that_are_no_utf8_are_told_apart(tmp_path):
    names = [os.fsdecode(b"caf\xe8"), os.fsdecode(b"caf\xe9")]
    pixels = tree(tmp_path, classes=names)
    source = FolderSource(tmp_path)
    assert source.classes == ("caf\\xe8", "caf\\xe9") and count(source) == [3, 3]
    assert np.array_equal(first(source), pixels["train", names[0], 0])
    for split in ("train", "test"):
        (tmp_path / split / names[0]).rename(tmp_path / split / "caf\\xe9")
    with pytest.raises(LabError, match=r"two class folders that are both.*bytes that are no UTF-8 are written out"):
        FolderSource(tmp_path)


def test_a_file_that_is_no_image_is_found_when_the_stream_is_opened(tmp_path):
    tree(tmp_path)
    (tmp_path / "test" / "dog" / "1.png").write_bytes(b"not an image")
    for size in (None, 6):
        with pytest.raises(LabError, match=r"dog/1\.png cannot be decoded"):
            FolderSource(tmp_path, size=size)


def test_images_are_found_after_a_change_of_the_working_directory(tmp_path, monkeypatch):
    pixels = tree(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    source = FolderSource("data", keep=0)
    assert (source.path, source.given) == (str(tmp_path / "data"), "data")
    monkeypatch.chdir("/")
    assert np.array_equal(first(source), pixels["train", "cat", 0])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_source("~/data").path == open_source("folder", path="~/data").path == source.path


# Which images they are ----------------------------------------------------------------------------------------------


def test_digests_tell_images_apart_and_unchanged_files_are_not_read_again(tmp_path):
    tree(tmp_path)
    one = FolderSource(tmp_path)
    names, stamps, digests = one.names("train"), one.stamps("train"), one.digests("train")
    assert names[:2] == ["cat/0.png", "cat/1.png"] and digests.shape == (6, 8) and len(np.unique(digests, axis=0)) == 6
    Image.fromarray(picture()).save(tmp_path / "train" / "dog" / "1.png")
    two = FolderSource(tmp_path)
    two.remember("train", names, stamps, np.zeros_like(digests))  # what is remembered is believed
    assert two.digests("train").any(axis=1).tolist() == [False, False, False, False, True, False]
    assert (FolderSource(tmp_path).digests("train") != digests).any(axis=1).tolist() == [False] * 4 + [True, False]


def test_digests_are_of_the_whole_file_in_whatever_pieces(tmp_path, monkeypatch):
    tree(tmp_path, height=30, width=30)
    wanted = [digest((tmp_path / "train" / name).read_bytes()) for name in FolderSource(tmp_path).names("train")]
    for length in (1, 63, 64, 65, 1000):
        monkeypatch.setattr(image_folder, "PIECE", length)
        assert [row.tobytes() for row in FolderSource(tmp_path).digests("train")] == wanted


def test_a_file_that_was_made_longer_is_not_held_in_memory(tmp_path, monkeypatch):
    tree(tmp_path)
    os.truncate(tmp_path / "train" / "cat" / "1.png", 100_000_000)  # takes no room on the disk
    source, before = FolderSource(tmp_path), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert source.digests("train").shape == (6, 8)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes
    monkeypatch.setattr(image_file, "LARGEST", 99_999_999)
    with pytest.raises(LabError, match=r"cat/1\.png has 100,000,000 bytes"):
        FolderSource(tmp_path)


def test_images_too_wide_for_any_network_ask_for_a_size(tmp_path, monkeypatch):
    tree(tmp_path)
    monkeypatch.setattr(image_folder.image_file, "WIDEST", 5)
    with pytest.raises(LabError, match=r"cat/0\.png has 6 x 6 pixels, 5 a side at most\. Pass size"):
        FolderSource(tmp_path)
    assert FolderSource(tmp_path, size=4).shape == (3, 4, 4)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "webp", "ppm", "avif", "jp2"])
def test_a_truncated_file_is_found_before_it_is_needed(tmp_path, suffix):
    tree(tmp_path, height=60, width=60)
    file = tmp_path / "train" / "dog" / f"3.{suffix}"
    Image.fromarray(picture(60, 60)).save(file)
    file.write_bytes(file.read_bytes()[: -(file.stat().st_size // 5)])
    with pytest.raises(LabError, match=rf"3\.{suffix} cannot be decoded"):
        FolderSource(tmp_path).digests("train")


@pytest.mark.skipif(os.fsencode("\udce9") != b"\xe9", reason="names are bytes of UTF-8 here")
def test_names_that_are_no_utf8_are_told_apart_and_kept(tmp_path):
    """Two names that the same letters would stand for; they come back from the file that knows them."""
    tree(tmp_path / "data")
    for number in (0xE8, 0xE9):
        Image.fromarray(picture()).save(tmp_path / "data" / "train" / "cat" / f"{os.fsdecode(bytes([number]))}.png")
    source = FolderSource(tmp_path / "data")
    names = [name for name in source.names("train") if "\\x" in name]
    assert names == ["cat/\\xe8.png", "cat/\\xe9.png"]
    folder = RunFolder(tmp_path)
    folder.write_images(Images.of(source))
    assert folder.read_images().files["train"] == source.names("train")


def test_a_place_that_is_no_utf8_is_refused_before_training(tmp_path):
    place = tmp_path / os.fsdecode(b"da\xff")
    tree(place)
    small = {"network__heads": (2, 1), "network__head_width": 4, "network__patch": 2, "memory__budget": 4}
    small |= {"folder": tmp_path / "run", "progress": False}
    run = lab.start("dne", lab.stream(place, tasks=(1, 1)), **small)
    with pytest.raises(LabError, match="is no UTF-8, so that the run could not be opened again"):
        run.train()
    (tmp_path / "link").symlink_to(place)
    run = lab.start("dne", lab.stream(tmp_path / "link", tasks=(1, 1)), **small)
    run.train(seconds=0)
    assert lab.open(tmp_path / "run", progress=False).cursor == run.cursor


def test_a_link_to_a_folder_above_is_not_followed(tmp_path):
    tree(tmp_path)
    before = FolderSource(tmp_path).names("train")
    outside = tmp_path.parent / "outside.png"
    outside.write_bytes((tmp_path / "train" / "cat" / "0.png").read_bytes())
    for number, above in enumerate((Path("/"), tmp_path.parent, tmp_path, tmp_path / "train")):
        (tmp_path / "train" / "cat" / f"up{number}").symlink_to(above, target_is_directory=True)
    with pytest.warns(UserWarning, match=r"4 file\(s\) left out \(4 link to a folder in which it lies\)"):
        assert FolderSource(tmp_path).names("train") == before
