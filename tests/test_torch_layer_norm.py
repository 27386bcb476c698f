"""layer_norm= of gatedrnn.torch: against cells written with torch's layer_norm, and the NumPy modules."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from helpers import CLASSES, assert_same_bits, normal
from test_layer_norm import forms

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("one_torch_thread")]
torch = pytest.importorskip("torch")
gatedrnn_torch = pytest.importorskip("gatedrnn.torch")

EPS = 1e-3


def norm(values, weight, bias):
    return torch.nn.functional.layer_norm(values, values.shape[-1:], weight, bias, EPS)


def lstm_of_products(p, x, h, c):
    gates = norm(x @ p["weight_ih_l0"].T, p["weight_ln_ih_l0"], p["bias_ih_l0"])
    gates = gates + norm(h @ p["weight_hh_l0"].T, p["weight_ln_hh_l0"], p["bias_hh_l0"])
    i, f, g, o = gates.chunk(4, dim=1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * norm(c, p["weight_ln_c_l0"], p["bias_ln_c_l0"]).tanh(), c


def lstm_of_gates(p, x, h, c):
    names = "ifgo" if "weight_cf_l0" in p or len(p["weight_ih_l0"]) == 4 * h.shape[1] else "igo"
    sums = (x @ p["weight_ih_l0"].T + h @ p["weight_hh_l0"].T).chunk(len(names), dim=1)
    sums = dict(zip(names, sums, strict=True))
    weights = dict(zip(names, p["weight_ln_l0"].chunk(len(names)), strict=True))
    biases = dict(zip(names, (p["bias_ih_l0"] + p["bias_hh_l0"]).chunk(len(names)), strict=True))

    def gate(name, seen):
        return norm(sums[name] + p.get(f"weight_c{name}_l0", 0) * seen, weights[name], biases[name])

    i = gate("i", c).sigmoid()
    c = (gate("f", c).sigmoid() if "f" in names else 1 - i) * c + i * gate("g", c).tanh()
    return gate("o", c).sigmoid() * c.tanh(), c


def gru_of_products(p, x, h, _):
    H = h.shape[1]
    parts = []
    for value, end in ((x, "ih"), (h, "hh")):
        rz, n = (value @ p[f"weight_{end}_l0"].T).split([2 * H, H], dim=1)
        weights, biases = p[f"weight_ln_{end}_l0"], p[f"bias_{end}_l0"]
        parts.append(
            (norm(rz, weights[: 2 * H], biases[: 2 * H]), norm(n, weights[2 * H :], biases[2 * H :]))
        )
    (x_rz, x_n), (h_rz, h_n) = parts
    r, z = (x_rz + h_rz).sigmoid().chunk(2, dim=1)
    return (1 - z) * (x_n + r * h_n).tanh() + z * h, None


STEPS = {
    ("lstm", "products"): lstm_of_products,
    ("lstm", "gates"): lstm_of_gates,
    ("gru", "products"): gru_of_products,
}


def module_of(cell, form, hidden_size=9, **options):
    constructor, own = CLASSES[cell]
    options = {**own, "layer_norm": form, "layer_norm_eps": EPS, **options}
    torch.manual_seed(3)
    module = getattr(gatedrnn_torch, constructor.__name__)(5, hidden_size, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-0.5, 0.5)
    return module, options


@forms
@pytest.mark.parametrize("hidden_size", [9, 33])
def test_torchs_values_and_gradients(cell, form, hidden_size):
    module, _ = module_of(cell, form, hidden_size, dtype=torch.float64)
    x = torch.from_numpy(normal((6, 3, 5), dtype=np.float64)).requires_grad_()
    weights = torch.from_numpy(normal((6, 3, hidden_size), seed=2, dtype=np.float64))
    output, _ = module(x)
    (output * weights).sum().backward()
    ours = {"x": x.grad, **{name: p.grad for name, p in module.named_parameters()}}

    parameters = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}
    x = x.detach().clone().requires_grad_()
    h = c = torch.zeros(3, hidden_size, dtype=torch.float64)
    outputs = []
    for step in x:
        h, c = STEPS[cell.split("_")[0], form](parameters, step, h, c)
        outputs.append(h)
    theirs = torch.stack(outputs)
    torch.testing.assert_close(output, theirs, rtol=1e-10, atol=1e-12)
    (theirs * weights).sum().backward()
    for name, gradient in {"x": x.grad, **{name: p.grad for name, p in parameters.items()}}.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-10)


@forms
def test_the_same_bits_and_gradients(cell, form):
    theirs, options = module_of(cell, form, num_layers=2, bidirectional=True)
    ours = CLASSES[cell][0](5, 9, **options)
    ours.load_state_dict(theirs.state_dict())
    x = normal((6, 3, 5))
    x_tensor = torch.from_numpy(x.copy()).requires_grad_()
    output, _ = theirs(x_tensor)
    expected, _, tape = ours.forward(x)
    assert_same_bits(output.detach().numpy(), expected)
    d_x, _, gradients = ours.backward(tape, np.ones_like(expected))
    output.sum().backward()
    assert_same_bits(x_tensor.grad.numpy(), d_x)
    for name, parameter in theirs.named_parameters():
        assert_same_bits(parameter.grad.numpy(), gradients[name])


@forms
def test_copies_files_and_graphs(cell, form, tmp_path, compiled):
    module, _ = module_of(cell, form)
    x = torch.from_numpy(normal((6, 3, 5)))
    assert f"layer_norm={form!r}" in repr(module)
    torch.save(module, tmp_path / "m.pt")
    for other in (copy.deepcopy(module), torch.load(tmp_path / "m.pt", weights_only=False), compiled(module)):
        assert torch.equal(other(x)[0], module(x)[0])


@forms
def test_a_new_module(cell, form):
    """Weights of norms start as torch.nn.LayerNorm's."""
    constructor, own = CLASSES[cell]
    module = getattr(gatedrnn_torch, constructor.__name__)(5, 9, **own, layer_norm=form)
    for name, parameter in module.named_parameters():
        if name.startswith("weight_ln"):
            assert (parameter == 1).all()
    assert {name: p.shape for name, p in module.named_parameters()} == {
        name: value.shape for name, value in constructor(5, 9, **own, layer_norm=form).state_dict().items()
    }


@forms
def test_one_step(cell, form):
    constructor, own = CLASSES[cell]
    module, _ = module_of(cell, form)
    one = getattr(gatedrnn_torch, constructor.__name__ + "Cell")(
        5, 9, **own, layer_norm=form, layer_norm_eps=EPS
    )
    one.load_state_dict({name.removesuffix("_l0"): value for name, value in module.state_dict().items()})
    x = torch.from_numpy(normal((3, 5)))
    after = one(x)
    h = after[0] if isinstance(after, tuple) else after
    assert torch.equal(h, module(x[None])[0][0])


def test_errors():
    with pytest.raises(ValueError, match="layer_norm: expected None or 'gates' with coupled=True"):
        gatedrnn_torch.LSTM(3, 4, coupled=True, layer_norm="products")
    with pytest.raises(ValueError, match="layer_norm: expected None or 'products' for a GRU"):
        gatedrnn_torch.GRUCell(3, 4, layer_norm="gates")
