"""Every operation against Pillow with the same argument, and how operations are drawn."""

import pytest
import torch
from patterns import from_pillow, patterns, to_pillow
from PIL import Image, ImageEnhance, ImageOps

from dne_lab.data import augment as module
from dne_lab.data.augment import OPERATIONS, augment

SIGNS = torch.tensor([1.0, -1.0], dtype=torch.float64)


def solarize_add(image, add):
    return image.point([min(255, i + int(add)) if i < 128 else i for i in range(256)] * len(image.getbands()))


def posterize(image, bits):
    """ImageOps.posterize, which newer versions of Pillow refuse to call with 0 bits (all black)."""
    return ImageOps.posterize(image, int(bits)) if bits >= 1 else Image.new(image.mode, image.size)


def affine(image, *matrix):
    fill = (128,) * 3 if image.mode == "RGB" else 128
    return image.transform(image.size, Image.AFFINE, matrix, Image.BILINEAR, fillcolor=fill)


PILLOW = {
    "AutoContrast": lambda image, a: ImageOps.autocontrast(image),
    "Equalize": lambda image, a: ImageOps.equalize(image),
    "Invert": lambda image, a: ImageOps.invert(image),
    "Rotate": lambda image, a: image.rotate(a, Image.BILINEAR, fillcolor=(128,) * 3 if image.mode == "RGB" else 128),
    "PosterizeIncreasing": posterize,
    "SolarizeIncreasing": lambda image, a: ImageOps.solarize(image, int(a)),
    "SolarizeAdd": solarize_add,
    "ColorIncreasing": lambda image, a: ImageEnhance.Color(image).enhance(a),
    "ContrastIncreasing": lambda image, a: ImageEnhance.Contrast(image).enhance(a),
    "BrightnessIncreasing": lambda image, a: ImageEnhance.Brightness(image).enhance(a),
    "SharpnessIncreasing": lambda image, a: ImageEnhance.Sharpness(image).enhance(a),
    "ShearX": lambda image, a: affine(image, 1, a, 0, 0, 1, 0),
    "ShearY": lambda image, a: affine(image, 1, 0, 0, a, 1, 0),
    "TranslateXRel": lambda image, a: affine(image, 1, 0, a * image.size[0], 0, 1, 0),
    "TranslateYRel": lambda image, a: affine(image, 1, 0, 0, 0, 1, a * image.size[1]),
}
EXACT = {"AutoContrast", "Equalize", "Invert", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd"}
BLENDS = {"ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing"}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_pillows(name, channels):
    """Tables are exact; blends may truncate to the other side of a float32 rounding (1 level); warps round where Pillow
    truncates (1 level), and at the border up to 1% of the pixels may be fill in one of the two only."""
    batch = patterns(channels)
    for level in (0.0, 0.3, 0.75, 0.9, 0.93, 1.0):
        for sign in SIGNS:
            levels = torch.full((len(batch),), level, dtype=torch.float64)
            argument = OPERATIONS[name].argument(levels, sign.expand(len(batch)))
            ours = OPERATIONS[name].apply(batch, argument)
            assert ours.dtype == torch.uint8
            theirs = [PILLOW[name](to_pillow(image), float(a)) for image, a in zip(batch, argument, strict=True)]
            difference = (ours - torch.stack([from_pillow(image) for image in theirs])).abs()
            if name in EXACT:
                assert difference.max() == 0
            elif name in BLENDS:
                assert difference.max() <= 1
                assert (difference > 0).float().mean() < 0.01
            else:
                assert (difference > 1).float().mean() <= 0.01


@pytest.mark.parametrize(
    ("name", "level", "argument"),
    [
        ("Rotate", 0.9, 27.0),
        ("PosterizeIncreasing", 0.9, 1),  # bits kept
        ("PosterizeIncreasing", 1.0, 0),
        ("PosterizeIncreasing", 0.0, 4),
        ("SolarizeIncreasing", 0.9, 26),
        ("SolarizeIncreasing", 0.0, 256),
        ("SolarizeAdd", 0.9, 99),
        ("ColorIncreasing", 0.9, 1.81),
        ("ContrastIncreasing", 1.0, 1.9),
        ("ShearX", 0.9, 0.27),
        ("ShearY", 1.0, 0.3),
        ("TranslateXRel", 0.9, 0.405),
        ("TranslateYRel", 1.0, 0.45),
    ],
)
def test_levels_become_timms_arguments(name, level, argument):
    levels = torch.full((1,), level, dtype=torch.float64)
    assert float(OPERATIONS[name].argument(levels, SIGNS[:1])) == pytest.approx(argument)
    if "Increasing" not in name and name != "SolarizeAdd":
        assert float(OPERATIONS[name].argument(levels, SIGNS[1:])) == pytest.approx(-argument)


def test_enhancements_go_down_to_a_tenth():
    level = torch.tensor([0.9, 1.0], dtype=torch.float64)
    assert OPERATIONS["BrightnessIncreasing"].argument(level, SIGNS[[1, 1]]).tolist() == pytest.approx([0.19, 0.1])


def test_two_of_fifteen_each_half_the_time_with_magnitude_nine(monkeypatch):
    assert len(OPERATIONS) == 15
    drawn = []
    monkeypatch.setattr(module.ops, "apply_each", lambda images, operations, *what: drawn.append(what))
    count = 40_000
    batch = torch.zeros((count, 1, 1, 1), dtype=torch.uint8)
    augment(batch, ["randaugment"], (0,), torch.arange(count))
    assert len(drawn) == 2
    for operation, level, sign in drawn:
        shares = torch.bincount(operation + 1, minlength=16) / count
        assert abs(shares[0] - 0.5) < 0.015
        assert (shares[1:] - 1 / 30).abs().max() < 0.005
        assert level.max() == 1.0  # 2.3% of the magnitudes exceed 10 and are cut
        assert 0.015 < (level == 1.0).double().mean() < 0.03
        assert level.median() == pytest.approx(0.9, abs=0.002)
        assert (level < 0.85).double().mean() == pytest.approx(0.1587, abs=0.01)  # one deviation below
        assert sign.mean() == pytest.approx(0, abs=0.03)
    both = (drawn[0][0] >= 0) & (drawn[1][0] >= 0)
    assert both.double().mean() == pytest.approx(0.25, abs=0.015)
    assert (drawn[0][0] == drawn[1][0])[both].double().mean() == pytest.approx(1 / 15, abs=0.015)  # with replacement


def test_images_change_as_often_as_operations_are_drawn():
    batch = patterns(3)[[0]].expand(2000, -1, -1, -1)
    out = augment(batch, ["randaugment"], (1,), torch.arange(2000))
    same = (out == batch).flatten(1).all(dim=1).double().mean()
    # untouched in a quarter; few operations leave noise over the whole range as it is (Equalize never exactly)
    assert 0.25 - 0.03 < same < 0.25 + 0.07


def test_tiny_images_survive():
    for side in (1, 2, 3):
        batch = torch.randint(0, 256, (200, 1, side, side), dtype=torch.uint8)
        assert augment(batch, ["randaugment"], (2,), torch.arange(200)).shape == batch.shape
