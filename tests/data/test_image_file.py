"""One image file as pixels, the same in folders and in the explorer's upload."""

import io
import resource
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
    assert image_file.complete(data)
    assert not any(image_file.complete(data[:length]) for length in range(0, len(data), 97))
