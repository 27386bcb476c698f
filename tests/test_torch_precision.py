"""Modules of PyTorch in less than float32: a precision of their own, autocast, and low parameters."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest

import gatedrnn as gr
from helpers import assert_same_bits

torch = pytest.importorskip("torch")
from torch.nn.utils.rnn import pack_padded_sequence  # noqa: E402

import gatedrnn.torch as gt  # noqa: E402
from torch_modules import (  # noqa: E402
    CELLS,
    NUMPY,
    every_cell,
    leaves,
    loss_of,
    ours,
    pair,
    parts,
    random,
    state_of,
    torchs_cells,
)

INPUT, HIDDEN = 33, 40
LOW = {torch.bfloat16: "bfloat16", torch.float16: "bfloat16x3"}  # and the precision of such parameters
low_dtypes = pytest.mark.parametrize("dtype", LOW, ids=str)
precisions = pytest.mark.parametrize("precision", ["bfloat16", "bfloat16x3", "int8"])


def autocast():
    return torch.autocast("cpu", torch.bfloat16)


def numpy_module(cell, module, precision):
    """The module of the NumPy API with the same parameters."""
    kind, _, own = CELLS[cell]
    same = NUMPY[kind](
        module.input_size,
        module.hidden_size,
        module.num_layers,
        bidirectional=module.bidirectional,
        precision=precision,
        **own,
    )
    same.load_state_dict(module.state_dict())
    return same


def as_arrays(state):
    if isinstance(state, tuple):
        return tuple(as_arrays(part) for part in state)
    return state.float().numpy()


def expected_of(cell, module, precision, x, state, dtype, lengths=None):
    """The results of the NumPy API, as tensors of this dtype."""
    output, state_n = numpy_module(cell, module, precision)(
        x.float().numpy(), as_arrays(state), lengths=lengths
    )
    return [torch.from_numpy(array).to(dtype) for array in (output, *parts(state_n))]


def assert_equal(results, expected):
    output, state_n = results
    actual = [output, *parts(state_n)]
    assert [tensor.dtype for tensor in actual] == [tensor.dtype for tensor in expected]
    assert all(map(torch.equal, actual, expected))


# --- a precision of their own ---------------------------------------------------------------------


@every_cell
@precisions
def test_bits_are_those_of_the_numpy_modules(cell, precision):
    module = ours(cell, INPUT, HIDDEN, num_layers=2, bidirectional=True, precision=precision)
    x, state = random(4, 3, INPUT), state_of(module, 3)
    with torch.no_grad():
        expected = expected_of(cell, module, precision, x, state, torch.float32, [4, 0, 2])
        assert_equal(module(x, state, lengths=[4, 0, 2]), expected)


@every_cell
@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16x3"])
def test_gradients_are_those_of_the_numpy_modules(cell, precision):
    module = ours(cell, INPUT, HIDDEN, precision=precision)
    x, same = random(4, 3, INPUT).requires_grad_(), numpy_module(cell, module, precision)
    output, _ = module(x)
    d_output = random(*output.shape)
    output.backward(d_output)
    d_x, _, gradients = same.backward(same.forward(x.detach().numpy())[2], d_output.numpy())
    assert_same_bits(x.grad.numpy(), d_x)
    for name, parameter in module.named_parameters():
        assert_same_bits(parameter.grad.numpy(), gradients[name])


def test_copies_and_files(tmp_path):
    module = ours("gru", INPUT, HIDDEN, precision="int8")
    assert "precision='int8'" in repr(module)
    torch.save(module, tmp_path / "module")
    x = random(4, 3, INPUT)
    with torch.no_grad():
        expected, _ = module(x)
        read = torch.load(tmp_path / "module", weights_only=False)
        for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), read):
            assert copied.precision == "int8"
            assert torch.equal(copied(x)[0], expected)


def test_a_pickle_from_before_there_were_precisions():
    module = ours("gru", INPUT, HIDDEN)
    del module.__dict__["precision"]
    assert module.precision is None
    module(random(4, 3, INPUT))


def test_int8_needs_no_grad():
    module, x = ours("gru", INPUT, HIDDEN, precision="int8"), random(4, 3, INPUT)
    with pytest.raises(ValueError, match=r"precision: expected .* for training, got 'int8'"):
        module(x)
    with torch.inference_mode():
        module(x)
    module.requires_grad_(False)(x)


# --- autocast -------------------------------------------------------------------------------------


@every_cell
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(cell, x_dtype):
    """Results are bfloat16, with the bits of that precision; gradients are of the leaves' dtypes."""
    module = ours(cell, INPUT, HIDDEN, num_layers=2, bidirectional=True)
    x, state = leaves(random(4, 3, INPUT).to(x_dtype)), leaves(state_of(module, 3))
    with autocast():
        results = module(x, state)
        detached = x.detach(), tuple(s.detach() for s in parts(state))
        detached = detached[0], detached[1] if len(detached[1]) > 1 else detached[1][0]
        assert_equal(results, expected_of(cell, module, "bfloat16", *detached, torch.bfloat16))
        with torch.no_grad():
            assert_equal(module(*detached), [results[0], *parts(results[1])])
            module(x, module(x)[1])  # takes the states that it gave
    loss_of([results[0], *parts(results[1])]).backward()
    for leaf in (x, *parts(state), *module.parameters()):
        assert leaf.grad.dtype == leaf.dtype
        assert torch.isfinite(leaf.grad).all()
    assert module(x.float())[0].dtype == torch.float32


@torchs_cells
def test_autocast_beside_torch(cell):
    """As torch's LSTM and RNN; its GRU gives the dtype of its input."""
    module, theirs = pair(cell, INPUT, HIDDEN)
    x = random(4, 3, INPUT)
    with autocast(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of oneDNN, which has no projection
        actual, expected = module(x)[0], theirs(x.bfloat16())[0]
    assert actual.dtype == expected.dtype == torch.bfloat16
    assert (actual - expected).abs().max() <= 8 * 2.0**-8 * max(1, expected.abs().max())
    actual.sum().backward()
    expected.sum().backward()
    for mine, other in zip(module.parameters(), theirs.parameters(), strict=True):
        assert mine.grad.dtype == other.grad.dtype == torch.float32
        if cell != "rnn_relu":  # of which a unit near 0 may be on in the one and off in the other
            assert (mine.grad - other.grad).abs().max() <= 16 * 2.0**-8 * max(1, other.grad.abs().max())


def test_autocast_leaves_float64_and_other_dtypes_alone():
    wide, x = ours("lstm", INPUT, HIDDEN).double(), random(4, 3, INPUT)
    plain = ours("lstm", INPUT, HIDDEN)
    with torch.no_grad():
        with autocast():
            assert torch.equal(wide(x.double())[0], ours("lstm", INPUT, HIDDEN).double()(x.double())[0])
        with torch.autocast("cpu", torch.float16):
            low = plain(x)[0]
        assert torch.equal(low, plain(x)[0])


def test_autocast_of_a_precision():
    """The module's own is what computes."""
    module, x = ours("gru", INPUT, HIDDEN, precision="bfloat16x3"), random(4, 3, INPUT)
    with torch.no_grad():
        expected, _ = module(x)
        with autocast():
            assert torch.equal(module(x)[0], expected.bfloat16())


def test_autocast_of_packed_sequences():
    module, x = ours("lstm", INPUT, HIDDEN), random(4, 3, INPUT)
    with autocast():
        packed, (h, c) = module(pack_padded_sequence(x, [4, 3, 1]))
        padded, (h_n, c_n) = module(x, lengths=[4, 3, 1])
    assert packed.data.dtype == torch.bfloat16
    assert torch.equal(packed.data[:3], padded[0])
    assert torch.equal(h, h_n)
    assert torch.equal(c, c_n)


def test_autocast_after_another_layer():
    module, linear = ours("lstm"), torch.nn.Linear(5, 5)
    with autocast():
        low = linear(random(4, 3, 5))
        output, _ = module(low, state_of(module, 3))
    output.sum().backward()
    assert low.dtype == torch.bfloat16
    assert linear.weight.grad.dtype == torch.float32


# --- parameters of less than float32 --------------------------------------------------------------


@every_cell
@low_dtypes
def test_low_parameters(cell, dtype):
    module = ours(cell, INPUT, HIDDEN, num_layers=2, bidirectional=True).to(dtype)
    x, state = leaves(random(4, 3, INPUT).to(dtype)), leaves(state_of(module, 3))
    results = module(x, state)
    plain = x.detach(), tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
    assert_equal(results, expected_of(cell, module, LOW[dtype], *plain, dtype))
    loss_of([results[0], *parts(results[1])]).backward()
    for leaf in (x, *parts(state), *module.parameters()):
        assert leaf.grad.dtype == dtype
        assert torch.isfinite(leaf.grad).all()


@torchs_cells
@low_dtypes
def test_low_parameters_beside_torch(cell, dtype):
    module, theirs = pair(cell, INPUT, HIDDEN)
    module, theirs, x = module.to(dtype), theirs.to(dtype), random(4, 3, INPUT).to(dtype)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        actual, expected = module(x)[0], theirs(x)[0]
    assert actual.dtype == expected.dtype == dtype
    allowed = 8 * torch.finfo(dtype).eps * max(1, float(expected.abs().max()))
    assert (actual.float() - expected.float()).abs().max() <= allowed


@low_dtypes
def test_low_parameters_from_the_start_that_change(dtype):
    module = ours("gru", INPUT, HIDDEN, dtype=dtype)
    x = random(4, 3, INPUT).to(dtype)
    with torch.no_grad():
        module(x)
        packed = module._cache._cached
        module(x)
        assert module._cache._cached is packed
        module.weight_hh_l0.mul_(0.5)
        assert_equal(module(x), expected_of("gru", module, LOW[dtype], x, torch.zeros(1, 3, HIDDEN), dtype))
        assert module._cache._cached is not packed
        module.float()
        assert module(x.float())[0].dtype == torch.float32


def test_low_parameters_in_an_optimizer():
    module = ours("gru", INPUT, HIDDEN, dtype=torch.bfloat16)
    optimizer, x = torch.optim.SGD(module.parameters(), lr=0.1), random(4, 3, INPUT).bfloat16()
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = module(x)[0].float().square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


# --- compiled -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["precision", "autocast", "bfloat16", "half"])
def test_compiled(how, compiled):
    """The same bits, forward and backward."""
    precision = "bfloat16x3" if how == "precision" else None
    module, x = ours("lstm", INPUT, HIDDEN, precision=precision), random(4, 3, INPUT)
    if how in ("bfloat16", "half"):
        module, x = getattr(module, how)(), getattr(x, how)()

    def compute(x):
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            return module(x)[0]

    def gradients(function):
        module.zero_grad()
        output = function(x)
        output.float().square().sum().backward()
        return [output.detach(), *[p.grad.clone() for p in module.parameters()]]

    for mine, other in zip(gradients(compiled(compute)), gradients(compute), strict=True):
        assert mine.dtype == other.dtype
        assert torch.equal(mine, other)


def test_float32_is_as_it_was():
    module, x = ours("gru", INPUT, HIDDEN), random(4, 3, INPUT)
    same = gr.GRU(INPUT, HIDDEN)
    same.load_state_dict(module.state_dict())
    with torch.no_grad():
        assert np.array_equal(module(x)[0].numpy(), same(x.numpy())[0])
    assert "precision" not in repr(gt.GRU(INPUT, HIDDEN))
