"""Small runs of `train.fit`, and what tests of them compare."""

from __future__ import annotations

import json

import numpy as np

from gatedrnn import train
from helpers import assert_same_bits

TOKENS = np.random.default_rng(5).integers(0, 11, 400)


class Run:
    """A small language model with two layers and no recurrence, and all that `fit` needs to train it."""

    def __init__(self, *, dtype=np.float32, seed=7, optimizer=train.Adam, **options):
        self.net = train.Modules(
            embedding=train.Embedding(11, 6, dtype=dtype, seed=1),
            head=train.Linear(6, 11, dtype=dtype, seed=2),
        )
        self.optimizer = optimizer(self.net.parameters(), **options)
        self.rng = np.random.default_rng(seed)

    def batches(self, rng):
        return [(TOKENS[k], TOKENS[k + 1]) for k in train.minibatches(rng, len(TOKENS) - 1, 50)]

    def loss_and_gradients(self, batch):
        inputs, targets = batch
        x, x_tape = self.net.embedding.forward(inputs)
        logits, logits_tape = self.net.head.forward(x)
        loss, d_logits = train.softmax_cross_entropy(logits, targets)
        d_x, d_head = self.net.head.backward(logits_tape, d_logits)
        _, d_embedding = self.net.embedding.backward(x_tape, d_x)
        return loss, self.net.gradients(embedding=d_embedding, head=d_head)

    def validate(self):
        logits = self.net.head(self.net.embedding(TOKENS[:-1]))
        return train.softmax_cross_entropy(logits, TOKENS[1:])[0]

    def fit(self, epochs, **options):
        options = {"rng": self.rng, "progress": False, **options}
        return train.fit(
            self.net, self.optimizer, self.loss_and_gradients, self.batches, epochs=epochs, **options
        )

    def everything(self):
        rng = {"rng": np.frombuffer(json.dumps(self.rng.bit_generator.state).encode(), np.uint8)}
        return {**self.net.state_dict(), **self.optimizer.state_dict(), **rng}


def assert_same_run(actual, expected):
    assert list(actual) == list(expected)
    for name, array in expected.items():
        assert_same_bits(actual[name], array)


class Scripted:
    """A run of one parameter p, whose validations after each epoch are given."""

    def __init__(self, validations):
        self.layer = train.Linear(1, 1, bias=False, dtype=np.float64)
        self.layer.weight[...] = 0
        self.optimizer = train.SGD(self.layer.parameters(), lr=1.0)
        self.validations = iter(validations)
        self.rates = []

    def loss_and_gradients(self, batch):
        self.rates.append(self.optimizer.lr)
        return float(batch), {"weight": np.full((1, 1), -1.0)}  # each step adds lr

    def fit(self, epochs, batches=(1.0,), **options):
        options = {"validate": lambda: next(self.validations), "progress": False, **options}
        return train.fit(
            self.layer,
            self.optimizer,
            self.loss_and_gradients,
            lambda rng: batches,
            epochs=epochs,
            **options,
        )
