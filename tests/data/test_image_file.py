"""One image file as pixels, the same in folders and in the explorer's upload."""

import io
import os
import resource
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shell import environment

from dne_lab.core.errors import LabError
from dne_lab.data import image_file
from dne_lab.widgets.subject import fit

RNG = np.random.default_rng(3)


def content(image: Image.Image, kind: str = "PNG", **how: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def read(data: bytes) -> np.ndarray:
    """(H, W, 3) as folders read it."""
    return np.asarray(image_file.opened(data, lambda image: image_file.to_rgb(image, "a file")))


def uploaded(data: bytes) -> np.ndarray:
    """(H, W, 3) as the explorer reads it."""
    height, width, _ = read(data).shape
    return fit(data, (3, height, width))[0].permute(1, 2, 0).numpy()


UPRIGHT = RNG.integers(0, 256, (6, 4, 3), dtype=np.uint8)  # (H, W, 3) as a viewer shows it
# What is stored for each of EXIF's numbers, so that a viewer shows UPRIGHT.
STORED = {
    1: UPRIGHT, 2: UPRIGHT[:, ::-1], 3: UPRIGHT[::-1, ::-1], 4: UPRIGHT[::-1], 5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT), 7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(UPRIGHT, -1),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("number", STORED)
def test_images_are_turned_as_exif_says_in_folders_and_uploads(number: int, kind: str) -> None:
    exif = Image.Exif()
    exif[image_file.ORIENTATION] = number
    how = {"lossless": True} if kind == "WEBP" else {}
    data = content(Image.fromarray(np.ascontiguousarray(STORED[number])), kind, exif=exif, **how)
    assert np.array_equal(read(data), UPRIGHT) and np.array_equal(uploaded(data), UPRIGHT)
    assert image_file.opened(data, image_file.size) == (4, 6)


@pytest.mark.parametrize("mode", ["I;16", "LA", "RGBA", "P", "1", "CMYK"])
def test_uploads_are_read_as_folders_are(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(RNG.integers(0, 65536, (5, 7), dtype=np.uint16))
    else:
        channels = {"LA": 2, "RGBA": 4, "CMYK": 4}.get(mode, 3)
        image = Image.fromarray(RNG.integers(0, 256, (5, 7, channels), dtype=np.uint8)).convert(mode)
    data = content(image, "TIFF" if mode == "CMYK" else "PNG")
    assert np.array_equal(read(data), uploaded(data)) and len(np.unique(read(data))) > 1


def test_damaged_exif_is_passed_over() -> None:
    data = content(Image.fromarray(UPRIGHT), "PNG", exif=b"Exif\0\0" + b"MM\0*\0\0\0\x08" + b"\xff" * 9)
    assert np.array_equal(read(data), UPRIGHT)


def test_other_formats_are_refused_whatever_they_are_called(tmp_path: Path) -> None:
    """An EPS would be handed to Ghostscript."""
    file = tmp_path / "picture.ppm"
    Image.fromarray(UPRIGHT).save(file, "EPS")
    for given in (file, file.read_bytes()):
        with pytest.raises(LabError, match="cannot be decoded"):
            image_file.opened(given, lambda image: image_file.to_rgb(image, "a file"))
    with pytest.raises(LabError, match="cannot be decoded"):
        fit(file.read_bytes(), (3, 8, 8))


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1", "a HEIC image"),
        (b"%PDF-1.7", "a PDF document"),
    ],
)
def test_a_known_kind_that_is_not_read_is_named(start: bytes, kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(start)
    for given in (start, tmp_path / "a.png"):
        with pytest.raises(LabError, match=f"is {kind}, which is not read here: convert it to one of JPEG, PNG"):
            image_file.opened(given, image_file.size)


def test_every_format_that_is_named_is_read(tmp_path: Path) -> None:
    for kind, suffixes in image_file.FORMATS.items():
        for suffix in suffixes:
            file = tmp_path / f"a{suffix}"
            Image.fromarray(UPRIGHT).save(file, kind)
            assert image_file.opened(file, image_file.size) == (4, 6)


def whole_then_cut(image: Image.Image, side: int) -> Image.Image:
    """What `fitted` must give: all of the image scaled, then its middle."""
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    whole = image.resize((width, height), Image.Resampling.BICUBIC)
    return whole.crop((left, top, left + side, top + side))


def test_fitting_scales_the_shorter_side_and_cuts_the_middle() -> None:
    for width, height, side in ((30, 20, 8), (8, 8, 8), (9, 31, 12), (640, 427, 32), (5, 5, 16)):
        image = Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))
        assert np.array_equal(image_file.fitted(image, side, side), whole_then_cut(image, side))


def test_a_strip_is_cut_before_it_is_scaled() -> None:
    """20,000 x 2 pixels at 224 would be 2,240,000 x 224 first: 1.5 GB."""
    image = Image.fromarray(RNG.integers(0, 256, (2, 1000, 3), dtype=np.uint8))
    far = np.asarray(image_file.fitted(image, 32, 32)).astype(int) - np.asarray(whole_then_cut(image, 32))
    assert np.abs(far).max() <= 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert image_file.fitted(Image.new("RGB", (65535, 1)), 224, 224).size == (224, 224)
    assert image_file.fitted(Image.new("RGB", (1, 65535)), 224, 224).size == (224, 224)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_a_file_that_is_very_large_is_named_where_warnings_are_errors(tmp_path: Path) -> None:
    file = tmp_path / "scan.png"
    Image.new("1", (9500, 9500)).save(file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(LabError, match=r"scan\.png"):
            image_file.opened(file, image_file.size)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_the_end_of_a_file_tells_whether_it_is_whole(kind: str) -> None:
    data = content(Image.fromarray(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8)), kind)
    ends = image_file.ENDS
    assert image_file.complete(data[:ends], data[-ends:], len(data))
    for length in range(0, len(data), 97):
        cut = data[:length]
        assert not image_file.complete(cut[:ends], cut[-ends:], length)


def of_mode(mode: str) -> Image.Image:
    """11 x 7 pixels, no two rows or columns alike."""
    if mode.startswith("I"):
        kind = {"I": "<i4", "I;16": "<u2", "I;16B": ">u2"}[mode]
        return Image.fromarray(RNG.integers(0, 65536, (7, 11)).astype(kind))
    if mode == "transparent P":
        image = Image.fromarray(RNG.integers(0, 256, (7, 11, 3), dtype=np.uint8)).quantize(8)
        image.info["transparency"] = bytes([0, 90, 255])
        return image
    channels = {"LA": 2, "RGBA": 4, "CMYK": 4}.get(mode, 3)
    return Image.fromarray(RNG.integers(0, 256, (7, 11, channels), dtype=np.uint8)).convert(mode)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "LA", "RGBA", "P", "transparent P", "CMYK", "I", "I;16", "I;16B"])
def test_strips_give_the_same_pixels_as_the_whole(mode: str, turn: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image = of_mode(mode)
    image.getexif()[image_file.ORIENTATION] = turn
    whole = np.asarray(image_file.to_rgb(image, "a file"))
    assert whole.shape == ((11, 7, 3) if turn >= 5 else (7, 11, 3)) and len(np.unique(whole)) > 1
    for pixels in (1, 25, 33):
        monkeypatch.setattr(image_file, "STRIP", pixels)
        assert np.array_equal(np.asarray(image_file.to_rgb(image, "a file")), whole)


def test_16_bits_become_the_nearest_8() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = np.asarray(image_file.to_rgb(Image.fromarray(values), "a file"))[:, :, 0]
    assert np.array_equal(found, np.round(values / 257).astype(np.uint8))


@pytest.mark.parametrize("mode", ["I;16", "P", "RGBA"])
def test_a_large_image_takes_little_more_than_itself_and_its_pixels(mode: str) -> None:
    """In a process of its own: what is wanted is the most that it ever took."""
    code = f"""
import resource
from PIL import Image
from dne_lab.data import image_file
def image(side):
    made = Image.new({mode!r}, (side, side))
    if made.mode == "P":
        made.putpalette([0, 0, 0, 255, 255, 255])
        made.info["transparency"] = 0
    return made
large = image(4000)
image_file.to_rgb(image(9), "")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert image_file.to_rgb(large, "").size == (4000, 4000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    # kilobytes: the result, 64 MB as Pillow keeps RGB, and strips; not 64 MB more for each step in between
    assert int(done.stdout) < 100_000


def test_files_of_more_bytes_than_images_have_are_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.fromarray(UPRIGHT).save(file)
    os.truncate(file, 10**12)  # takes no room on the disk
    with pytest.raises(LabError, match=r"a\.png has 1,000,000,000,000 bytes; images of up to 512,000,000 are read"):
        image_file.opened(file, image_file.size)


COMMENTS = {
    "one long": b"P6\n#" + b"x" * 5_000_000 + b"\n6 4\n255\n" + UPRIGHT.tobytes(),
    "in a header": b"P6\n" + b"#x\n" * 1_000_000 + b"6 4\n255\n" + UPRIGHT.tobytes(),
    "between numbers": b"P2\n4 4\n255\n" + b"#\n" * 2_500_000 + b"1 " * 16,
    "no header": b"P5" + b" " * 5_000_000,
}


@pytest.mark.parametrize("kind", COMMENTS)
def test_a_ppm_of_comments_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.ppm").write_bytes(COMMENTS[kind])
    begun = time.process_time()
    for given in (COMMENTS[kind], tmp_path / "a.ppm"):
        with pytest.raises(LabError, match="of a PPM of its width and height with short comments"):
            image_file.opened(given, lambda image: image.load())
    assert time.process_time() - begun < 1


def test_a_large_ppm_with_comments_is_read() -> None:
    pixels = RNG.integers(0, 256, (200, 300, 3), dtype=np.uint8)
    words = b"P3 # a picture\n# 300 x 200\n300 200\n255\n" + b"  ".join(b"%3d" % one for one in pixels.flat)
    for data in (b"P6\n# made by hand\n300 200 255\n" + pixels.tobytes(), words):
        assert len(data) > image_file.NETPBM_HEAD and np.array_equal(read(data), pixels)


def test_memory_that_is_not_there_has_its_own_advice() -> None:
    def use(image: Image.Image) -> None:
        raise MemoryError

    with pytest.raises(LabError, match=r"a\.png needs more memory than there is\. Scale it down"):
        image_file.opened(content(Image.fromarray(UPRIGHT)), use, "a.png")


@pytest.mark.parametrize(("room", "most"), [(48, 2), (5, 1)])
def test_few_large_images_are_decoded_at_a_time(room: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 24 pixels each: two have room, or one that is too large for it."""
    monkeypatch.setattr(image_file, "AT_ONCE", room)
    data, lock, inside, seen = content(Image.fromarray(UPRIGHT)), threading.Lock(), [0], [0]

    def use(image: Image.Image) -> None:
        with lock:
            inside[0] += 1
            seen[0] = max(seen[0], inside[0])
        time.sleep(0.02)
        with lock:
            inside[0] -= 1

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: image_file.opened(data, use), range(12)))
    assert seen == [most] and inside == [0]
