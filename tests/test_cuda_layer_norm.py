"""layer_norm= on the device: the processor's results and gradients but for rounding."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest

from gradients import assert_close_gradients, problem
from helpers import flat, normal
from test_cuda import on_device
from test_layer_norm import FORMS, forms, others

pytestmark = on_device

# (I, H, B, T, options): units below, at and above the threads of a block.
SHAPES = [
    (1, 1, 1, 2, {}),
    (7, 9, 3, 4, {"num_layers": 2, "bidirectional": True}),
    (5, 33, 4, 6, {"lengths": [6, 0, 3, 5]}),
    (3, 129, 2, 3, {"bias": False}),
    (4, 300, 3, 2, {"direction": "reverse", "learn_state": True}),
]


def compare(p, amount=200, gradients=1e-4):
    there = dataclasses.replace(p, module=copy.deepcopy(p.module).to("cuda"))
    eps = np.finfo(p.x.dtype).eps
    for actual, expected in zip(flat(there.results()), flat(p.results()), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=amount * eps)
    relative = gradients if p.x.dtype == np.float32 else 1e-10
    for recompute in (False, True):
        assert_close_gradients(there.gradients(recompute=recompute), p.gradients(), relative)
    return there


@forms
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_and_gradients(cell, form, dtype, shape):
    *sizes, options = shape
    compare(problem(cell, *sizes, dtype=dtype, layer_norm=form, layer_norm_eps=1e-2, **options))


@forms
def test_with_other_options(cell, form):
    p = problem(cell, 5, 17, 3, 4, dtype=np.float32, layer_norm=form, layer_norm_eps=1e-2, **others(cell))
    compare(p)


@pytest.mark.parametrize("form", ["products", "gates"])
def test_with_a_projection(form):
    compare(problem("lstm_projected", 5, 17, 3, 4, dtype=np.float32, layer_norm=form, layer_norm_eps=1e-2))


def test_with_peepholes_and_a_projection():
    p = problem("lstm_peephole_projected", 5, 17, 3, 4, layer_norm="gates", layer_norm_eps=1e-2)
    compare(p)


@pytest.mark.parametrize(("cell", "form"), FORMS[:3])
def test_no_steps(cell, form):
    p = problem(cell, 5, 7, 3, 4, lengths=[0, 0, 0], layer_norm=form)
    there = compare(p)
    gradients = there.gradients()
    assert not any(gradients[name].any() for name in there.module.state_dict())


@forms
@pytest.mark.parametrize("precision", ["tf32", "float16", "bfloat16"])
def test_precisions(cell, form, precision):
    p = problem(cell, 9, 17, 5, 4, dtype=np.float32, layer_norm=form, layer_norm_eps=1e-2)
    there = dataclasses.replace(p, module=copy.deepcopy(p.module).to("cuda", precision))
    for actual, expected in zip(flat(there.results()), flat(p.results()), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=0.1)
    assert_close_gradients(there.gradients(), p.gradients(), 0.2)


@forms
def test_streams_masks_and_episodes(cell, form):
    module = problem(cell, 5, 9, 3, 7, dtype=np.float32, layer_norm=form).module.to("cuda")
    x = normal((7, 3, 5))
    output, _ = module(x)
    stream = module.stream(3)
    np.testing.assert_allclose(np.stack([stream.step(step) for step in x]), output, rtol=0, atol=1e-4)
    mask, resets = np.ones((7, 3), bool), np.zeros((7, 3), bool)
    mask[2:4, 1] = False
    resets[3, 2] = True
    output, _ = module(x, mask=mask, resets=resets)
    on_host, _ = copy.deepcopy(module).to("cpu")(x, mask=mask, resets=resets)
    np.testing.assert_allclose(output, on_host, rtol=0, atol=1e-4)
