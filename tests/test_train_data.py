"""Batches, chunks of tokens and padded rows."""

from __future__ import annotations

import numpy as np
import pytest

from gatedrnn import train
from test_errors import refused


def test_minibatches():
    batches = list(train.minibatches(None, 7, 3))
    assert [batch.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    shuffled = np.concatenate(list(train.minibatches(np.random.default_rng(0), 1000, 32)))
    assert sorted(shuffled) == list(range(1000))
    assert (np.diff(shuffled) != 1).any()
    again = np.concatenate(list(train.minibatches(np.random.default_rng(0), 1000, 32)))
    np.testing.assert_array_equal(again, shuffled)


def test_minibatches_shuffle_at_once():
    """The generator's state does not depend on when, or whether, the batches are taken."""
    taken, left = np.random.default_rng(0), np.random.default_rng(0)
    list(train.minibatches(taken, 9, 2))
    train.minibatches(left, 9, 2)
    assert taken.bit_generator.state == left.bit_generator.state


def test_token_chunks():
    chunks = list(train.token_chunks(np.arange(16), 3, 2))
    assert [inputs.tolist() for inputs, _ in chunks] == [
        [[0, 7], [1, 8], [2, 9]],
        [[3, 10], [4, 11], [5, 12]],
        [[6, 13]],
    ]
    for inputs, targets in chunks:
        np.testing.assert_array_equal(targets, inputs + 1)


@pytest.mark.parametrize(("count", "batch_size"), [(2, 1), (10, 9), (15, 2), (100, 7)])
def test_token_chunks_leave_out_less_than_a_batch(count, batch_size):
    seen = np.concatenate(
        [targets.T.ravel() for _, targets in train.token_chunks(np.arange(count), 5, batch_size)]
    )
    assert len(set(seen.tolist())) == len(seen)
    assert count - 1 - batch_size < len(seen) <= count - 1


def test_padded():
    batch, lengths = train.padded([np.array([1, 2, 3]), np.array([4])])
    np.testing.assert_array_equal(batch, [[1, 4], [2, 0], [3, 0]])
    np.testing.assert_array_equal(lengths, [3, 1])
    batch, lengths = train.padded([np.ones((2, 5), np.float32), np.ones((0, 5), np.float32)])
    assert (batch.shape, batch.dtype, lengths.tolist()) == ((2, 2, 5), np.float32, [2, 0])
    np.testing.assert_array_equal(batch[:, :, 0] == 1, train.mask_of(lengths, 2))


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("rng", lambda: train.minibatches(3, 5, 2)),
        ("count", lambda: train.minibatches(None, 0, 2)),
        ("batch_size", lambda: train.minibatches(None, 5, 0)),
        ("tokens", lambda: train.token_chunks([1], 1, 1)),
        ("tokens", lambda: train.token_chunks([[1, 2]], 1, 1)),
        ("tokens", lambda: train.token_chunks([1.0, 2.0], 1, 1)),
        ("steps", lambda: train.token_chunks([1, 2, 3], 0, 1)),
        ("batch_size", lambda: train.token_chunks([1, 2, 3], 1, 3)),
        ("sequences", lambda: train.padded([])),
        ("sequences", lambda: train.padded([3, 4])),
        ("sequences", lambda: train.padded([np.ones((2, 3)), np.ones((2, 4))])),
        ("sequences", lambda: train.padded([np.ones(2), np.ones(2, int)])),
    ],
)
def test_data_refused(name, use):
    with refused(name):
        use()
