"""gatedrnn.train's learning-rate schedules."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gatedrnn.train import schedules
from test_errors import refused

EPS = np.finfo(np.float64).eps


def test_constant():
    rate = schedules.constant(0.25)
    assert [rate(step) for step in (0, 1, 10**9)] == [0.25] * 3


def test_step():
    rate = schedules.step(1.0, 3, 0.5)
    assert [rate(step) for step in range(8)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert schedules.step(1.0, 3)(3) == 0.1


def test_cosine():
    rate = schedules.cosine(2.0, 8, final=1.0)
    assert rate(0) == 2
    assert abs(rate(2) - (1.5 + math.sqrt(0.5) / 2)) <= 2 * EPS
    assert abs(rate(4) - 1.5) <= 2 * EPS
    assert [rate(step) for step in (8, 9, 1000)] == [1.0] * 3
    assert schedules.cosine(2.0, 8)(8) == 0


def test_cosine_after_warm_up():
    warm, plain = schedules.cosine(2.0, 12, final=0.5, warmup=3), schedules.cosine(2.0, 9, final=0.5)
    assert [warm(step) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert [warm(step + 3) for step in range(12)] == [plain(step) for step in range(12)]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("lr", lambda: schedules.constant(-1.0)),
        ("lr", lambda: schedules.constant("1")),
        ("lr", lambda: schedules.constant(True)),
        ("lr", lambda: schedules.cosine(math.nan, 3)),
        ("lr", lambda: schedules.step(math.inf, 3)),
        ("steps", lambda: schedules.cosine(1.0, 0)),
        ("steps", lambda: schedules.cosine(1.0, 2.5)),
        ("final", lambda: schedules.cosine(1.0, 3, final=-0.1)),
        ("warmup", lambda: schedules.cosine(1.0, 3, warmup=3)),
        ("warmup", lambda: schedules.cosine(1.0, 3, warmup=-1)),
        ("every", lambda: schedules.step(1.0, 0)),
        ("factor", lambda: schedules.step(1.0, 3, -0.5)),
        ("factor", lambda: schedules.step(1.0, 3, None)),
    ],
)
def test_refused(name, make):
    with refused(name):
        make()
