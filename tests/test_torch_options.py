"""activations=, clip= and cell_clip= of gatedrnn.torch: the NumPy modules' bits, gradients, graphs."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import gatedrnn as gr
from helpers import CELLS, CLASSES, assert_same_bits, normal
from test_cell_options import limits, mixed

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("one_torch_thread")]
torch = pytest.importorskip("torch")
gatedrnn_torch = pytest.importorskip("gatedrnn.torch")

cells = pytest.mark.parametrize("cell", CELLS)


def pair(cell, **options):
    """A module of each kind with the same parameters."""
    constructor, own = CLASSES[cell]
    options = {**own, "activations": mixed(cell, 3), **limits(cell), **options}
    theirs = getattr(gatedrnn_torch, constructor.__name__)(5, 9, **options)
    ours = constructor(5, 9, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def h_of(state):
    return state[0] if isinstance(state, tuple) else state


@cells
def test_the_same_bits_and_gradients(cell):
    ours, theirs = pair(cell, num_layers=2, bidirectional=True)
    x = normal((6, 3, 5))
    x_tensor = torch.from_numpy(x.copy()).requires_grad_()
    output, state = theirs(x_tensor)
    expected, _, tape = ours.forward(x)
    assert_same_bits(output.detach().numpy(), expected)
    d_x, _, gradients = ours.backward(tape, np.ones_like(expected))
    output.sum().backward()
    assert_same_bits(x_tensor.grad.numpy(), d_x)
    for name, parameter in theirs.named_parameters():
        assert_same_bits(parameter.grad.numpy(), gradients[name])
    assert h_of(state).shape == (4, 3, 9)


@cells
def test_representation_copies_and_files(cell, tmp_path):
    _, module = pair(cell)
    x = torch.from_numpy(normal((6, 3, 5)))
    assert repr(module.activations) in repr(module)
    assert f"clip={module.clip}" in repr(module)
    torch.save(module, tmp_path / "m.pt")
    for other in (copy.deepcopy(module), torch.load(tmp_path / "m.pt", weights_only=False)):
        assert torch.equal(other(x)[0], module(x)[0])


@cells
def test_one_step(cell):
    constructor, own = CLASSES[cell]
    ours, module = pair(cell)
    options = {"activations": mixed(cell, 3), **limits(cell)}
    one = getattr(gatedrnn_torch, constructor.__name__ + "Cell")(5, 9, **own, **options)
    one.load_state_dict({name.removesuffix("_l0"): value for name, value in module.state_dict().items()})
    x = torch.from_numpy(normal((3, 5)))
    assert_same_bits(h_of(one(x)).detach().numpy(), ours(x.numpy()[None])[0][0])


def test_through_the_dispatcher(compiled):
    """As graphs call it: options travel as text."""
    _, module = pair("lstm_peephole")
    through = compiled(module)
    x = torch.from_numpy(normal((6, 3, 5))).requires_grad_()
    expected, _ = module(x)
    output, _ = through(x)
    assert torch.equal(output, expected)
    (by_graph,) = torch.autograd.grad(output.sum(), x)
    (direct,) = torch.autograd.grad(expected.sum(), x)
    assert torch.equal(by_graph, direct)


def test_errors():
    with pytest.raises(ValueError, match="activations: expected 2 of them"):
        gatedrnn_torch.GRU(3, 4, activations=["relu"])
    with pytest.raises(TypeError, match="clip: expected a number or None"):
        gatedrnn_torch.RNNCell(3, 4, clip="1")


def test_torch_functions():
    """Each function against PyTorch's own, and its slope against autograd."""
    functional = torch.nn.functional
    theirs = {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "relu": functional.relu,
        "hardsigmoid": functional.hardsigmoid,
        ("leaky_relu", 0.01): functional.leaky_relu,
        ("elu", 1.0): functional.elu,
        "softsign": functional.softsign,
        "softplus": functional.softplus,
    }
    weights = {"weight_ih_l0": np.ones((1, 1)), "weight_hh_l0": np.zeros((1, 1))}
    x = np.linspace(-5, 5, 101)[None, :, None]
    for name, function in theirs.items():
        module = gr.RNN(1, 1, bias=False, dtype=np.float64, activations=[name])
        module.load_state_dict(weights)
        output, _, tape = module.forward(x)
        d_x, _, _ = module.backward(tape, np.ones_like(output))
        expected = torch.from_numpy(x.copy()).requires_grad_()
        function(expected).sum().backward()
        np.testing.assert_allclose(output, function(expected).detach(), rtol=1e-7, atol=1e-15)
        corners = np.isclose(x, 0) | np.isclose(np.abs(x), 3)
        np.testing.assert_allclose(d_x[~corners], expected.grad.numpy()[~corners], rtol=1e-7, atol=1e-15)
