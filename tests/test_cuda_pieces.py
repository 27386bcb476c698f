"""`mask` and `resets` with device="cuda": the processor's numbers. Where these run: see test_cuda.py."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest

from gatedrnn import _device
from gradients import Problem, assert_close_gradients, assert_same_gradients, gradient_tolerance, named, parts
from helpers import CELLS_AND_PROJECTION, build, flat, normal, state_of
from test_cuda import Foreign, both, every_cell, make, on_device, plain, problem_of
from test_pieces import KINDS, Marked, random_marks, with_nan
from tolerance import assert_close

pytestmark = on_device
both_outputs = pytest.mark.parametrize("mask_output", ["zeros", "previous"])


def marked(p, marks, mask_output="zeros"):
    """The problem with these marks, and with NaN in skipped steps."""
    fields = {field.name: getattr(p, field.name) for field in dataclasses.fields(Problem)}
    if p.x.ndim == 3 and not p.module.batch_first:
        fields["x"] = with_nan(p.x, marks)
    first = p.module.batch_first
    return Marked(**fields, marks={**marks.arguments(first), "mask_output": mask_output})


def compare(p):
    host, device = both(p)
    options = {"cell": plain(p.cell), "accumulations": p.accumulations, "steps": p.steps}
    for tape in (False, True):
        results = [q.results() if tape else q.module(q.x, q.state, **q.marks) for q in (device, host)]
        if p.dropout_seed is None or tape:
            assert_close(*map(flat, results), layers=p.module.num_layers, **options)
    assert_close_gradients(device.gradients(), host.gradients(), 4 * gradient_tolerance(p))


@every_cell
@both_outputs
@pytest.mark.parametrize("bidirectional", [False, True])
def test_results_and_gradients(cell, mask_output, bidirectional):
    options = {"num_layers": 2, "bidirectional": bidirectional}
    for kind in KINDS.values():
        p = problem_of(cell, (3, 5, 4, 6, options))
        compare(marked(p, kind(6, 4), mask_output))


@both_outputs
@pytest.mark.parametrize(
    "shape", [(3, 70, 5, 3, {}), (9, 5, 33, 7, {}), (3, 5, 4, 1, {"bidirectional": True})]
)
def test_shapes(shape, mask_output):
    p = problem_of("lstm", shape)
    compare(marked(p, random_marks(shape[3], shape[2]), mask_output))


@both_outputs
def test_layouts(mask_output):
    p = problem_of("gru", (3, 5, 4, 6, {"batch_first": True, "bidirectional": True}))
    compare(marked(p, random_marks(6, 4), mask_output))
    module, marks = make("gru", 3, 5), random_marks(6, 1, lengths=False)
    device = copy.deepcopy(module).to("cuda")
    x = normal((6, 3))
    one = {"mask": marks.mask[:, 0], "resets": marks.resets[:, 0].tolist(), "mask_output": mask_output}
    for actual, expected in zip(flat(device(x, **one)), flat(module(x, **one)), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_dropout_has_the_masks_of_the_processor():
    p = problem_of(
        "lstm", (3, 8, 4, 6, {"num_layers": 3, "dropout": 0.4, "bidirectional": True}), dropout_seed=5
    )
    compare(marked(p, random_marks(6, 4)))


def test_recompute():
    p = marked(problem_of("lstm", (3, 5, 4, 34, {"bidirectional": True})), random_marks(34, 4))
    _, device = both(p)
    assert_close_gradients(device.gradients(recompute=True), device.gradients(), gradient_tolerance(p))


@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (3, 0), (0, 0)])
def test_nothing_to_do(steps, batch):
    p = problem_of("lstm", (3, 4, batch, steps, {"num_layers": 2, "bidirectional": True}))
    compare(marked(p, random_marks(steps, batch, lengths=False)))


@both_outputs
def test_arrays_of_the_device(mask_output):
    p = marked(problem_of("lstm", (3, 5, 3, 6, {}), np.float32), random_marks(6, 3), mask_output)
    _, device = both(p)
    module = device.module
    expected, wanted = device.results(), device.gradients()

    def there(value):
        return tuple(map(there, value)) if isinstance(value, tuple) else Foreign(value, "dlpack")

    out = _device.backend().Array(np.empty(expected[0].shape, np.float32))
    assert module(there(p.x), there(p.state), out=out, **p.marks)[0] is out
    np.testing.assert_array_equal(out.numpy(), expected[0])
    output, state_n, tape = module.forward(there(p.x), there(p.state), **p.marks)
    for actual, e in zip(flat((output, state_n)), flat(expected), strict=True):
        np.testing.assert_array_equal(actual.numpy(), e)
    for _ in range(2):
        gradients = named(*module.backward(tape, there(p.d_output), there(p.d_state_n)))
        assert_same_gradients({name: value.numpy() for name, value in gradients.items()}, wanted)


@pytest.mark.parametrize("cell", CELLS_AND_PROJECTION)
def test_streams(cell):
    module = build(cell, 3, 5, num_layers=2, dtype=np.float64)
    host, device = module.stream(4), copy.deepcopy(module).to("cuda").stream(4)
    host.state = device.state = state_of(module, 4)
    marks = random_marks(6, 4, lengths=False)
    for x, resets, mask in zip(normal((6, 4, 3), dtype=np.float64), marks.resets, marks.mask, strict=True):
        np.testing.assert_allclose(
            device.step(x, resets=resets, mask=mask),
            host.step(x, resets=resets, mask=mask),
            rtol=1e-12,
            atol=1e-12,
        )
        for actual, expected in zip(parts(device.state), parts(host.state), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["mask", "resets"])
def test_errors(name):
    module = make("gru", 3, 4).to("cuda")
    x = normal((4, 2, 3), dtype=np.float32)
    with pytest.raises(
        ValueError, match=rf"^{name}: expected booleans of shape \(4, 2\), got shape \(2, 4\)$"
    ):
        module(x, **{name: np.ones((2, 4), bool)})
    with pytest.raises(TypeError, match=rf"^{name}: expected booleans of shape \(4, 2\), got dtype int64$"):
        module.forward(x, **{name: np.ones((4, 2), int)})
    with pytest.raises(ValueError, match=rf"^{name}: expected booleans of shape \(2,\), got shape \(1,\)$"):
        module.stream(2).step(x[0], **{name: [True]})
