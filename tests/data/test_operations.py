"""What the tables of RandAugment and AutoAugment share; each operation is checked with its table."""

import pytest
import torch
from patterns import from_pillow, patterns, to_pillow
from PIL import ImageOps

from dne_lab.data import augment
from dne_lab.data import operations as ops

TABLES = {"randaugment": augment.OPERATIONS, "autoaugment": augment.AUTO_OPERATIONS}
SIGNS = torch.tensor([1.0, -1.0], dtype=torch.float64)


@pytest.mark.parametrize("table", TABLES)
def test_strengths_differ_from_image_to_image_in_one_batch(table):
    for name, operation in TABLES[table].items():
        batch = patterns(3)[[0, 1, 0, 1]]
        level = torch.tensor([0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
        sign = SIGNS[[0, 1, 1, 0]]
        together = operation.apply(batch, operation.argument(level, sign))
        for row in range(4):
            one = slice(row, row + 1)
            alone = operation.apply(batch[one], operation.argument(level[one], sign[one]))
            assert torch.equal(alone[0], together[row]), name


def test_each_image_gets_its_own_operation_and_minus_one_is_none():
    table = TABLES["autoaugment"]
    batch = patterns(3)[[0]].expand(len(table) + 1, -1, -1, -1).clone()
    before, which = batch[0].clone(), torch.arange(len(table) + 1).flip(0) - 1
    level = torch.full((len(which),), 0.7, dtype=torch.float64)
    ops.apply_each(batch, table, which, level, -torch.ones_like(level))
    for image, number in zip(batch, which, strict=True):
        if number < 0:
            assert torch.equal(image, before)
        else:
            operation = list(table.values())[number]
            assert torch.equal(image, operation.apply(before[None], operation.argument(level[:1], -level[:1] / 0.7))[0])


def test_autocontrast_is_exact_for_every_range_of_values():
    values = torch.arange(256).view(1, 16, 16)
    for low in (0, 1, 30, 77, 128, 200, 253):
        batch = torch.stack([values.clamp(low, high).to(torch.uint8) for high in range(low, 256)])
        wanted = torch.stack([from_pillow(ImageOps.autocontrast(to_pillow(image))) for image in batch])
        assert torch.equal(ops.autocontrast(batch, torch.zeros(len(batch))).long(), wanted)
