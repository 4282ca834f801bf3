"""AutoAugment against torchvision's on Pillow images: the table, every step of it, whole results, and what is drawn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from patterns import from_pillow, patterns, to_pillow
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, InterpolationMode

from dne_lab.data import augment as module
from dne_lab.data.augment import AUTO_OPERATIONS, POLICY, augment
from dne_lab.data.operations import apply_each

KEY = (0, "autoaugment")
BLENDS = {"Color", "Contrast", "Brightness", "Sharpness"}
WARPS = {"Rotate", "ShearY"}


class Reference(AutoAugment):
    """torchvision's with the sub-policy, and for each step whether it is applied and its sign, given.

    Its ranges are computed in float64: in float32, 1 - 0.4 becomes less than 0.6, and Pillow truncates every fifth
    product to the next lower level.
    """

    def __init__(self, policy, applied, sign):
        super().__init__(AutoAugmentPolicy.CIFAR10, InterpolationMode.BILINEAR, fill=128)
        self.given = policy, [0.0 if one else 2.0 for one in applied], [int(one > 0) for one in sign]

    def get_params(self, transform_num):
        return self.given

    def _augmentation_space(self, num_bins, image_size):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            return super()._augmentation_space(num_bins, image_size)
        finally:
            torch.set_default_dtype(before)

    def of(self, images):
        return torch.stack([from_pillow(self(to_pillow(image))) for image in images])


def test_the_policy_is_torchvisions():
    theirs = AutoAugment(AutoAugmentPolicy.CIFAR10).policies
    assert [[(name, p, magnitude or 0) for name, p, magnitude in pair] for pair in theirs] == [*map(list, POLICY)]
    assert {name for pair in POLICY for name, _, _ in pair} == set(AUTO_OPERATIONS)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", range(25))
def test_every_step_is_torchvisions(policy, channels):
    """Tables and shifts are exact; blends may truncate to the other side of a float32 rounding (1 level); warps round
    where Pillow truncates (1 level), and at the border up to 1% of the pixels may be fill in one of the two only."""
    batch = patterns(channels)
    for step, (name, _, magnitude) in enumerate(POLICY[policy]):
        for sign in (-1.0, 1.0):
            wanted = Reference(policy, [step == 0, step == 1], [sign, sign]).of(batch)
            ours, ones = batch.clone(), torch.ones(len(batch), dtype=torch.float64)
            which = torch.full((len(batch),), list(AUTO_OPERATIONS).index(name))
            apply_each(ours, AUTO_OPERATIONS, which, ones * magnitude / 9, ones * sign)
            difference = (ours - wanted).abs()
            if name in BLENDS:
                assert difference.max() <= 1
                assert (difference > 0).float().mean() < 0.01
            elif name in WARPS:
                assert (difference > 1).float().mean() <= 0.01
            else:
                assert difference.max() == 0


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.sampled_from([1, 3]), st.integers(3, 40), st.integers(3, 40), st.integers(0, 10**6))
def test_images_get_what_torchvision_makes_of_their_draws(channels, height, width, first):
    """As above; the one level of a shear can become a step of Posterize, the other operation of its sub-policy."""
    batch, index = patterns(channels, height, width), torch.arange(first, first + 6)
    ours = augment(batch, KEY[1:], KEY[:1], index)
    for row, (policy, applied, sign) in enumerate(zip(*module._drawn(KEY, index), strict=True)):
        wanted = Reference(int(policy), applied, sign).of(batch[row : row + 1])[0]
        difference = (ours[row] - wanted).abs()
        if WARPS & {name for (name, _, _), done in zip(POLICY[policy], applied, strict=True) if done}:
            assert (difference > 1).float().mean() <= 0.1
        else:
            assert (difference > 0).float().mean() <= 0.01


def test_sub_policies_are_drawn_evenly_and_steps_with_their_probabilities():
    count = 100_000
    policy, applied, sign = module._drawn(KEY, torch.arange(count))
    shares = torch.bincount(policy, minlength=25) / count
    assert len(shares) == 25 and (shares - 1 / 25).abs().max() < 0.003
    for number, pair in enumerate(POLICY):
        mine = applied[policy == number].double()
        wanted = torch.tensor([p for _, p, _ in pair], dtype=torch.float64)
        assert (mine.mean(dim=0) - wanted).abs().max() < 0.04
        assert mine.prod(dim=1).mean() == pytest.approx(float(wanted.prod()), abs=0.04)  # independent of each other
    assert not applied[policy == 14, 1].any()  # probability 0
    assert sign.unique().tolist() == [-1, 1]
    assert sign.mean(dim=0).tolist() == pytest.approx([0, 0], abs=0.015)
    assert (sign[:, 0] * sign[:, 1]).mean() == pytest.approx(0, abs=0.015)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [1, 2, 3])
def test_tiny_images_survive(side, channels):
    batch = torch.randint(0, 256, (200, channels, side, side), dtype=torch.uint8)
    out = augment(batch, KEY[1:], KEY[:1], torch.arange(200))
    assert (out.dtype, out.shape) == (torch.uint8, batch.shape)
