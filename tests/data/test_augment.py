import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dne_lab.core import chance
from dne_lab.core.config import AUGMENTATIONS
from dne_lab.core.errors import LabError
from dne_lab.data import augment as module
from dne_lab.data.augment import augment
from dne_lab.data.operations import about_centre, rotation, warp

KEY = (0, "augment", 1, "learn", 3)


def images(count=24, channels=3, side=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


def test_every_configurable_name_exists():
    assert set(module.AUGMENTATIONS) == set(AUGMENTATIONS)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from(AUGMENTATIONS), min_size=1, max_size=3),
    st.sampled_from([1, 3]),
    st.lists(st.integers(0, 23), min_size=1, max_size=40),
    st.integers(0, 3),
)
def test_the_result_for_an_image_does_not_depend_on_its_batch(names, channels, rows, seed):
    key, batch, index = (*KEY, seed), images(channels=channels), torch.arange(24) * 1000 + 7
    whole, before = augment(batch, names, key, index), batch.clone()
    part = augment(batch[rows], names, key, index[rows])
    assert torch.equal(part, whole[rows])
    assert torch.equal(batch, before)
    assert (part.dtype, part.shape) == (torch.uint8, (len(rows), channels, 16, 16))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_another_epoch_draws_anew_and_names_draw_independently(name):
    batch, index = images(), torch.arange(24)
    first = augment(batch, [name], KEY, index)
    assert torch.equal(first, augment(batch, [name], KEY, index))
    assert not torch.equal(first, augment(batch, [name], (*KEY, 4), index))
    twice = augment(batch, ["flip", name], KEY, index)
    assert torch.equal(twice, augment(augment(batch, ["flip"], KEY, index), [name], KEY, index))


@pytest.mark.parametrize(("side", "pad"), [(8, 1), (16, 2), (32, 4), (5, 1)])
def test_crop_takes_every_window_of_the_padded_image_equally_often(side, pad):
    image = images(1, side=side)
    count = 400 * (2 * pad + 1) ** 2 if side < 32 else 1500
    out = augment(image.expand(count, -1, -1, -1), ["crop"], KEY, torch.arange(count))
    padded = torch.nn.functional.pad(image[0], (pad, pad, pad, pad))
    found = torch.zeros(2 * pad + 1, 2 * pad + 1)
    for top in range(2 * pad + 1):
        for left in range(2 * pad + 1):
            window = padded[:, top : top + side, left : left + side]
            found[top, left] = (out == window).flatten(1).all(dim=1).sum()
    assert found.sum() == count  # every result is one of the windows
    expected = count / found.numel()
    assert (found - expected).abs().max() < 5 * expected**0.5


def test_flip_mirrors_every_second_image():
    batch = images(4000, side=4)
    out = augment(batch, ["flip"], KEY, torch.arange(4000))
    mirrored = (out == batch.flip(-1)).flatten(1).all(dim=1)
    assert ((out == batch).flatten(1).all(dim=1) | mirrored).all()
    assert 0.45 < mirrored.float().mean() < 0.55


def test_brightness_multiplies_by_1_minus_to_plus_63_over_255():
    batch = torch.full((5000, 1, 2, 2), 100, dtype=torch.uint8)
    out = augment(batch, ["brightness"], KEY, torch.arange(5000))[:, 0, 0, 0]
    low, high = 100 * (1 - 63 / 255), 100 * (1 + 63 / 255)
    assert (out.min(), out.max()) == (int(low), int(high))
    assert abs(out.float().mean() - 99.5) < 1  # values are truncated, as Pillow does
    assert augment(torch.full_like(batch, 255), ["brightness"], KEY, torch.arange(5000)).max() == 255


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]), st.integers(0, 10**6))
def test_cutout_blackens_a_square_around_the_drawn_pixel(height, width, channels, first):
    batch, index = images(8, channels, 40)[:, :, :height, :width], torch.arange(first, first + 8)
    out = augment(batch, ["cutout"], KEY, index)
    side = min(height, width) // 2
    for image, cut, (u, v) in zip(batch, out, chance.uniform((*KEY, "cutout"), index, 2).tolist(), strict=True):
        top, left = int(u * height) - side // 2, int(v * width) - side // 2
        wanted = image.clone()
        wanted[:, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
        assert torch.equal(cut, wanted)


def test_the_square_of_cutout_is_centred_on_every_pixel_equally_often():
    """Of 32 rows, those from 8 above the centre to 7 below are black: which they are tells the centre."""
    count = 30_000
    black = augment(torch.ones(count, 1, 32, 32, dtype=torch.uint8), ["cutout"], KEY, torch.arange(count))[:, 0] == 0
    place = []
    for hit in (black.any(dim=2), black.any(dim=1)):  # rows, columns
        lines = hit.sum(dim=1)
        first = hit.int().argmax(dim=1)
        assert (lines[first > 0] == (32 - first[first > 0]).clamp_max(16)).all()
        place.append(torch.where(first > 0, first + 8, lines - 8))
    assert (black.sum(dim=(1, 2)) == black.any(dim=2).sum(dim=1) * black.any(dim=1).sum(dim=1)).all()  # a rectangle
    found = torch.bincount(place[0] * 32 + place[1], minlength=32 * 32)
    assert len(found) == 32 * 32
    expected = count / 32**2
    assert (found - expected).abs().max() < 5 * expected**0.5
    assert found.double().var() == pytest.approx(expected, rel=0.2)  # a Poisson count: neither even nor in clusters


def test_affine_stays_within_its_ranges():
    """The picture of a point moves as far as 10 degrees, 10% and a factor of 1.1 allow, and uses that room."""
    side, at = 41, (20, 32)  # 12 pixels right of the centre
    batch = torch.zeros(3000, 1, side, side, dtype=torch.uint8)
    batch[:, :, at[0] - 1 : at[0] + 2, at[1] - 1 : at[1] + 2] = 255
    out = augment(batch, ["affine"], KEY, torch.arange(3000)).double()[:, 0]
    mass = out.sum(dim=(1, 2))
    steps = torch.arange(side).double()
    x = (out.sum(dim=1) * steps).sum(dim=1) / mass - 20
    y = (out.sum(dim=2) * steps).sum(dim=1) / mass - 20
    assert 1.1 * 12 + 4.1 + 0.1 > x.max() > 15.5
    assert 0.9 * 12 * 0.984 - 4.1 - 0.1 < x.min() < 8.5
    limit = 1.1 * 12 * 0.174 + 4.1 + 0.1
    assert -limit < y.min() < -5 < 5 < y.max() < limit
    assert abs(float(y.mean())) < 0.2
    assert out[:, 0, 0].max() == 0  # black comes in from outside


@pytest.mark.parametrize("channels", [1, 3])
def test_warp_equals_pillow_within_one_grey_level(channels):
    """Pillow truncates and computes in float64, we round: one level. At the very border a coordinate may fall on either
    side, so up to 0.5% of the pixels may be fill in one and not in the other."""
    batch = images(40, channels, 24)
    draws = torch.rand(40, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    linear = rotation(40 * draws[:, 0]) * (1 + 0.3 * draws[:, 1])[:, None, None]
    matrix = about_centre(linear, 5 * draws[:, 2:], 24, 24)
    ours = warp(batch, matrix, fill=77)
    off = 0
    for image, row, result in zip(batch, matrix, ours, strict=True):
        pillow = Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy())
        colour = (77,) * 3 if channels == 3 else 77
        theirs = pillow.transform((24, 24), Image.AFFINE, row.flatten().tolist(), Image.BILINEAR, fillcolor=colour)
        theirs = torch.tensor(list(theirs.tobytes())).view(24, 24, channels).permute(2, 0, 1)
        off += ((result.int() - theirs.int()).abs() > 1).sum()
    assert off <= 0.005 * ours.numel()


def test_the_identity_warp_changes_nothing_and_non_square_images_work():
    batch = images(5)[:, :, :10]
    same = torch.eye(2, 3, dtype=torch.float64).expand(5, 2, 3)
    assert torch.equal(warp(batch, same, 0), batch)
    right = same.clone()
    right[:, 0, 2] = 3
    moved = warp(batch, right, 9)
    assert torch.equal(moved[..., :-3], batch[..., 3:])
    assert (moved[..., -3:] == 9).all()
    assert augment(batch, AUGMENTATIONS, KEY, torch.arange(5)).shape == batch.shape


def test_wrong_input():
    with pytest.raises(LabError, match=r"unknown augmentation 'crops'\. Did you mean crop"):
        augment(images(), ["crops"], KEY, torch.arange(24))
    with pytest.raises(ValueError, match="uint8 images"):
        augment(images().float(), ["crop"], KEY, torch.arange(24))
    with pytest.raises(ValueError, match="uint8 images"):
        augment(images(), ["crop"], KEY, torch.arange(23))
    assert len(augment(images()[:0], AUGMENTATIONS, KEY, torch.arange(0))) == 0
    assert torch.equal(augment(images(), [], KEY, torch.arange(24)), images())


FIXED = [name for name, kind in module.AUGMENTATIONS.items() if kind.fixed is not None]


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("channels", [1, 3])
def test_all_operations_at_once_give_what_one_by_one_gives(name, channels):
    kind, batch, index = module.AUGMENTATIONS[name], images(1000, channels=channels), torch.arange(1000)
    batch[::2] = batch[::2] // 4 + 90  # of low contrast, as photographs have it
    drawn = kind.draw(KEY, index, 16, 16)
    whole = kind.fixed(batch, *kind.plan(16, 16, *drawn))
    assert torch.equal(whole, kind.apply(batch, *drawn))  # to the bit, on a CPU
    assert not torch.equal(whole, batch)


def test_augmentation_of_fixed_shape_is_one_graph():
    names, batch = ("crop", "flip", "randaugment", "autoaugment", "cutout", "brightness"), images(8)
    kinds = [module.AUGMENTATIONS[name] for name in names]
    drawn = [kind.draw((*KEY, name), torch.arange(8), 16, 16) for kind, name in zip(kinds, names, strict=True)]
    plans = [k.plan(16, 16, *d) if k.plan else d for k, d in zip(kinds, drawn, strict=True)]

    def whole(batch, plans):
        for kind, plan in zip(kinds, plans, strict=True):
            batch = (kind.fixed or kind.apply)(batch, *plan)
        return batch

    compiled = torch.compile(whole, fullgraph=True, backend="eager")
    assert torch.equal(compiled(batch, plans), augment(batch, names, KEY, torch.arange(8)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_gpu_gives_what_the_cpu_gives(name):
    batch, index = images(256), torch.arange(256)
    ours = augment(batch.cuda(), [name], KEY, index)
    assert ours.device.type == "cuda"
    difference = (ours.cpu().int() - augment(batch, [name], KEY, index).int()).abs()
    assert (difference > 1).float().mean() < 1e-3  # interpolation rounds differently


@pytest.mark.parametrize(
    "names", [("crop", "flip", "randaugment"), ("crop", "flip", "brightness", "autoaugment", "cutout")]
)
def test_a_batch_of_64_cifar_images_is_ready_within_50_ms(names):
    batch, index = images(64, side=32), torch.arange(64)
    best = float("inf")
    for epoch in range(10):
        start = time.process_time()
        augment(batch, names, (epoch,), index)
        best = min(best, time.process_time() - start)
    assert best < 0.05
