"""Every draw is a function of its key: whatever the batch, the process and what was drawn before."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dne_lab.core import chance

parts = st.integers(-(2**40), 2**40) | st.text(max_size=5)
keys = st.lists(parts, min_size=1, max_size=4).map(tuple)
indices = st.lists(st.integers(0, 2**40), min_size=1, max_size=30, unique=True)
quick = settings(derandomize=True, deadline=None, max_examples=60)


@quick
@given(keys, indices, st.integers(1, 6), st.randoms(use_true_random=False))
def test_an_image_draws_the_same_in_every_batch(key, index, count, random):
    whole = chance.uniform(key, torch.tensor(index), count)
    assert whole.shape == (len(index), count) and whole.dtype == torch.float32
    shuffled = random.sample(range(len(index)), len(index))
    again = chance.uniform(key, torch.tensor([index[i] for i in shuffled]), count)
    assert torch.equal(again, whole[shuffled])
    cut = random.randint(0, len(index))
    parts = [chance.uniform(key, torch.tensor(part, dtype=torch.int64), count) for part in (index[:cut], index[cut:])]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(chance.uniform(key, torch.tensor(index), count + 2)[:, :count], whole)


@quick
@given(keys, keys)
def test_unlike_keys_draw_unlike_numbers(one, other):
    assert (chance.integer(*one) == chance.integer(*other)) == (one == other)
    assert 0 <= chance.integer(*one) < 2**63
    index = torch.arange(8)
    assert torch.equal(chance.uniform(one, index, 2), chance.uniform(other, index, 2)) == (one == other)


def test_a_number_and_its_text_are_unlike_keys_and_parts_do_not_run_together():
    drawn = {chance.integer(*key) for key in ((1,), ("1",), (1, 1), (11,), ("1", 1), ("11",), ("a", "b"), ("ab",))}
    assert len(drawn) == 8


def test_uniform_numbers_are_uniform_and_unrelated():
    draws = chance.uniform((0, "x"), torch.arange(20_000), 4).double().numpy()
    assert draws.min() >= 0 and draws.max() < 1
    for column in draws.T:  # five standard errors
        assert abs(column.mean() - 0.5) < 5 / np.sqrt(12 * len(column))
        assert abs(column.var() - 1 / 12) < 5 / np.sqrt(180 * len(column))
        histogram = np.histogram(column, 32, (0, 1))[0]
        assert ((histogram - 625) ** 2 / 625).sum() < 31 + 5 * np.sqrt(2 * 31)  # chi square
    near = chance.uniform((1, "x"), torch.arange(20_000), 4).double().numpy()  # the next seed
    table = np.corrcoef(np.concatenate([draws, near], axis=1).T)
    assert abs(table - np.eye(len(table))).max() < 5 / np.sqrt(len(draws))
    following = np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]  # images with neighbouring numbers
    assert abs(following) < 5 / np.sqrt(len(draws))


def test_permutations_are_permutations_of_their_key():
    one = chance.permutation(50, 0, "order", 1)
    assert sorted(one.tolist()) == list(range(50)) and one.dtype == torch.int64
    assert torch.equal(one, chance.permutation(50, 0, "order", 1))
    assert not torch.equal(one, chance.permutation(50, 0, "order", 2))
    assert chance.permutation(0, 0).shape == (0,)


def test_nothing_depends_on_the_global_state_and_nothing_changes_it():
    def draws():
        with chance.seeded(3, "initialise"):
            weight = torch.rand(4)
        return torch.cat([chance.uniform((3,), torch.arange(5), 2).flatten(), chance.permutation(5, 3).float(), weight])

    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = draws()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    torch.rand(7)
    assert torch.equal(draws(), first)


def test_the_global_state_comes_back_after_an_error():
    before = torch.random.get_rng_state()
    with pytest.raises(ValueError, match="stop"), chance.seeded(1):
        torch.rand(3)
        raise ValueError("stop")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_numbers_never_change():
    # They are behind every record that was ever written, on every machine and with every version of torch.
    assert chance.integer(0, "order", 1) == 5288543681127824561
    assert chance.uniform((0, "a"), torch.tensor([5, 2**35]), 2).tolist() == [
        [0.15651679039001465, 0.6024692058563232],
        [0.16663217544555664, 0.777388870716095],
    ]


def test_layers_draw_one_number_an_image_of_the_batch_being_trained_on():
    like = torch.zeros(1)
    index = torch.tensor([7, 3, 9])
    with chance.batch((0, "depth", 1), index):
        first, other = chance.for_batch("block 1", like, 3), chance.for_batch("block 2", like, 3)
        assert torch.equal(first, chance.for_batch("block 1", like, 3)) and not torch.equal(first, other)
        with chance.batch((0, "depth", 1), index[1:]):
            assert torch.equal(chance.for_batch("block 1", like, 2), first[1:])  # the same images in another batch
        assert torch.equal(chance.for_batch("block 1", like, 3), first)
    with chance.batch((0, "depth", 2), index):
        assert not torch.equal(chance.for_batch("block 1", like, 3), first)
    torch.manual_seed(5)
    alone = chance.for_batch("block 1", like, 3)  # a model used by hand
    torch.manual_seed(5)
    assert torch.equal(alone, torch.rand(3))
    with pytest.raises(ValueError, match="stop"), chance.batch((0,), index):
        raise ValueError("stop")
    assert len(chance.for_batch("block 1", like, 3)) == 3 and chance._active == []


@pytest.mark.parametrize("count", [1, 3])
def test_numbers_drawn_ahead_are_those_drawn_a_batch_at_a_time(count: int) -> None:
    images = torch.tensor([7, 3, 2**40, 3, 11, 0])
    batches = [images[[4, 0, 2]], images[[1, 3, 5]], images[:0]]
    keys: list[chance.Key] = [(0, "augment", 1), (0, "augment", 2)]
    plain = [chance.uniform(key, batch, count) for key in keys for batch in batches]
    with chance.ahead(images):
        drawn = [chance.uniform(key, batch, count) for key in keys for batch in batches]
        with chance.ahead(images[:1]):
            inner = chance.uniform(keys[0], batches[0], count)  # images that nobody announced
    assert all(torch.equal(a, b) for a, b in zip(plain, drawn, strict=True))
    assert torch.equal(inner, plain[0])


def test_an_epoch_draws_once_for_each_key(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    draw = chance._draw
    monkeypatch.setattr(chance, "_draw", lambda key, index, count: drawn.append(len(index)) or draw(key, index, count))
    images = torch.arange(10, 30)
    with chance.ahead(images):
        for part in images.flip(0).split(6):
            with chance.batch((0, "depth"), part):
                chance.for_batch("block 1", torch.zeros(1), len(part))
            chance.uniform((0, "augment"), part, 2)
    assert drawn == [20, 20]
    chance.uniform((0, "augment"), images, 2)
    assert drawn == [20, 20, 20]
