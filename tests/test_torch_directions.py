"""direction=, merge= and learn_state= of gatedrnn.torch: the NumPy modules' numbers, and autograd."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from helpers import normal

torch = pytest.importorskip("torch")
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402

import gatedrnn.torch as gt  # noqa: E402
from torch_modules import NUMPY, dtypes, every_cell, leaves, ours, parts, random, state_of  # noqa: E402

OPTIONS = [
    {"direction": "reverse", "num_layers": 2},
    {"direction": "reverse", "learn_state": True},
    {"bidirectional": True, "merge": "sum"},
    {"bidirectional": True, "merge": "mul", "learn_state": True, "num_layers": 2},
    {"bidirectional": True, "merge": "mean", "learn_state": True, "batch_first": True},
    {"learn_state": True, "num_layers": 3},
]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=str)


def with_random_states(module):
    for name in ("h_0", "c_0"):
        if name in module.state_dict():
            torch.nn.init.normal_(getattr(module, name))
    return module


def in_numpy(module, cell, options):
    own = {"proj_size": module.proj_size} if module.proj_size else {}
    own |= {name: getattr(module, name) for name in module._own_options}
    dtype = np.dtype(str(next(module.parameters()).dtype).removeprefix("torch."))
    other = NUMPY[type(module)](module.input_size, module.hidden_size, dtype=dtype, **(own | options))
    other.load_state_dict(module.state_dict())
    return other


@every_cell
@every_option
@dtypes
@pytest.mark.parametrize("given", [False, True])
def test_results_and_gradients(cell, options, dtype, given):
    module = with_random_states(ours(cell, 7, 17, dtype=dtype, **options))
    other = in_numpy(module, cell, options)
    assert list(other.state_dict()) == list(module.state_dict())
    x, lengths = leaves(random(5, 3, 7, dtype=dtype)), [3, 1, 2, 0, 3] if module.batch_first else [5, 0, 2]
    state = leaves(state_of(module, len(lengths))) if given else None
    output, state_n = module(x, state, lengths=lengths)
    into = state if state is None else tuple(p.detach().numpy() for p in parts(state))
    into = into[0] if into is not None and len(into) == 1 else into
    expected, expected_n, tape = other.forward(x.detach().numpy(), into, lengths=lengths)
    np.testing.assert_array_equal(output.detach().numpy(), expected)
    for part, e in zip(
        parts(state_n), expected_n if isinstance(expected_n, tuple) else [expected_n], strict=True
    ):
        np.testing.assert_array_equal(part.detach().numpy(), e)
    with torch.no_grad():
        assert torch.equal(module(x, state, lengths=lengths)[0], output)

    d_output = random(*output.shape, seed=5, dtype=dtype)
    output.backward(d_output)
    d_x, _, gradients = other.backward(tape, d_output.numpy())
    eps = torch.finfo(dtype).eps  # sums over rows may be in another order
    np.testing.assert_array_equal(x.grad.numpy(), d_x)
    for name, parameter in module.named_parameters():
        if name in ("h_0", "c_0"):
            allowed = 16 * eps * max(1.0, np.abs(gradients[name]).max())
            got = 0 if given else parameter.grad.numpy()
            np.testing.assert_allclose(got, gradients[name], rtol=0, atol=allowed)
        else:
            np.testing.assert_array_equal(parameter.grad.numpy(), gradients[name])


@every_option
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_gradcheck(cell, options):
    module = with_random_states(ours(cell, 2, 3, dtype=torch.float64, **options))
    names, values = zip(*module.named_parameters(), strict=True)
    x = leaves(random(3, 2, 2, dtype=torch.float64))

    def run(x, *values):
        output, state = torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))
        return output, *parts(state)

    assert torch.autograd.gradcheck(run, (x, *values))


@every_option
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_packed_sequences_and_single_rows(cell, options):
    module = with_random_states(ours(cell, **(options | {"batch_first": False})))
    x, lengths = random(5, 3, module.input_size), [2, 5, 3]
    expected, expected_n = module(x, lengths=lengths)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    output, state_n = module(packed)
    assert torch.equal(pad_packed_sequence(output)[0], expected)
    alone, alone_n = module(x[:2, 0])
    assert torch.equal(alone, expected[:2, 0])
    for a, b, c in zip(parts(state_n), parts(expected_n), parts(alone_n), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(c, b[:, 0])


@every_option
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_through_operators(cell, options, compiled):
    """As torch.compile goes."""
    module = with_random_states(ours(cell, **options))
    through = compiled(module)
    x = random(4, 3, module.input_size)
    expected = module(x)[0]
    expected.sum().backward()
    gradients = {name: p.grad.clone() for name, p in module.named_parameters()}
    module.zero_grad()
    output = through(x)[0]
    assert torch.equal(output, expected)
    output.sum().backward()
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter.grad, gradients[name]), name


@every_option
def test_copies_and_state_dicts(options):
    module = with_random_states(ours("gru", **options))
    x = random(4, 3, module.input_size)
    other = ours("gru", seed=9, **options)
    other.load_state_dict(module.state_dict())
    for each in (other, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert repr(each) == repr(module)
        assert torch.equal(each(x)[0], module(x)[0])
    for name, value in options.items():
        assert getattr(module, name) == value
        assert f"{name}={value!r}" in repr(module)


def test_a_new_module_has_zeros():
    torch.manual_seed(0)
    module = gt.LSTM(3, 4, learn_state=True)
    torch.manual_seed(0)
    plain = gt.LSTM(3, 4)
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, getattr(module, name))
    assert not module.h_0.any()
    assert not module.c_0.any()
    with_random_states(module).reset_parameters()
    assert not module.h_0.any()
    assert len(module.all_weights[0]) == 4
    assert {id(p) for p in module.parameters()} >= {id(module.h_0), id(module.c_0)}


def test_a_changed_state_is_seen():
    module = gt.GRU(3, 4, learn_state=True)
    x = random(4, 2, 3)
    before = module(x)[0].detach()
    with torch.no_grad():
        module.h_0 += 1
    assert not torch.equal(module(x)[0], before)
    assert torch.equal(module(x)[0], module(x, torch.ones(1, 2, 4))[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_dtypes(dtype):
    module = with_random_states(gt.GRU(5, 33, bidirectional=True, merge="mul", learn_state=True, dtype=dtype))
    x = torch.from_numpy(normal((4, 3, 5))).to(dtype)
    output, state = module(x)
    assert (output.dtype, state.dtype, output.shape) == (dtype, dtype, (4, 3, 33))
    output.float().sum().backward()
    assert module.h_0.grad.dtype == dtype
    assert module.h_0.grad.abs().max() > 0


def test_autocast():
    module = with_random_states(gt.LSTM(5, 33, bidirectional=True, merge="sum", learn_state=True))
    x = random(4, 3, 5)
    expected = module(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = module(x)
    assert output.dtype == torch.bfloat16
    assert (output.float() - expected).abs().max() < 0.05


def test_pickles_from_before():
    """They have none of these attributes."""
    module = gt.GRU(3, 4)
    for name in ("direction", "merge", "learn_state"):
        del module.__dict__[name]
    module._stack = type(module._stack)(*module._stack[:5])
    other = pickle.loads(pickle.dumps(module))
    x = random(4, 2, 3)
    assert torch.equal(other(x)[0], module(x)[0])
    assert repr(other) == repr(gt.GRU(3, 4))


def test_errors():
    with pytest.raises(ValueError, match="direction: expected 'forward' with bidirectional=True"):
        gt.GRU(3, 4, bidirectional=True, direction="reverse")
    with pytest.raises(ValueError, match="merge: expected 'concat' with bidirectional=False"):
        gt.GRU(3, 4, merge="mul")
    with pytest.raises(TypeError, match="learn_state: expected True or False"):
        gt.GRU(3, 4, learn_state=None)
