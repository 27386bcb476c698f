"""What autograd asks of gatedrnn.torch, and the memory that tapes and gradients take."""

from __future__ import annotations

import contextlib
import sys
import weakref

import pytest

from helpers import assert_same_bits, run_python

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("one_torch_thread")]
torch = pytest.importorskip("torch")

from gatedrnn.torch import _ops  # noqa: E402
from torch_modules import (  # noqa: E402
    HIDDEN,
    INPUT,
    compare,
    leaves,
    operator_arguments,
    ours,
    pair,
    random,
    state_of,
)

# ---- memory ----


def address(array):
    return array.__array_interface__["data"][0]


def test_nothing_is_copied():
    """The engine reads x, the state and the parameters where they are, and its results are the tensors."""
    seen = {}

    class Spy:
        packed_for_backward = True

        def __init__(self, network):
            self.network = network

        def forward(self, x, state, *rest):
            seen["inputs"] = [x, *state]
            output, state_n, _ = result = self.network.forward(x, state, *rest)
            seen["results"] = [output, *state_n]
            return result

        def backward(self, tape, d_output, d_state_n, gradients, *rest):
            seen["d_output"] = d_output
            d_x, d_state = result = self.network.backward(tape, d_output, d_state_n, gradients, *rest)
            seen["gradients"] = [d_x, *d_state, *gradients.values()]
            return result

    module = ours("lstm")
    x, state = leaves(random(4, 3, INPUT)[:, ::2]), leaves(state_of(module, 2))  # strides of x kept
    packed = module._cache.get(module._stack, list(module.parameters()), True)
    assert packed.addresses == [parameter.data_ptr() for parameter in module.parameters()]
    module._cache._cached = packed._replace(network=Spy(packed.network))
    output, state_n = module(x, state)
    d_output = random(4, 2, HIDDEN)
    output.backward(d_output)
    for arrays, tensors in [
        (seen["inputs"], [x, *state]),
        (seen["results"], [output, *state_n]),
        ([seen["d_output"]], [d_output]),
        (seen["gradients"], [tensor.grad for tensor in (x, *state, *module.parameters())]),
    ]:
        assert [address(array) for array in arrays] == [tensor.data_ptr() for tensor in tensors]


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted by Linux")
def test_training_settles_without_new_memory():
    """A step after an update touches no new memory for its tape, though the allocator here keeps none."""
    code = """
import json, resource
import torch
import gatedrnn.torch as gt

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

module, x = gt.LSTM(16, 64), torch.randn(200, 16, 16)
optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
counts = []
for _ in range(6):
    optimizer.zero_grad()
    before = faults()
    output, _ = module(x)
    counts.append(faults() - before)
    output.sum().backward()
    optimizer.step()
print(json.dumps([counts, 5 * output.nbytes // resource.getpagesize()]))
"""
    counts, pages = run_python(code, environment={"MALLOC_MMAP_THRESHOLD_": "65536"})
    assert counts[0] > pages, "the measurement itself is broken"
    assert max(counts[3:]) < pages


@pytest.mark.parametrize("way", ["eager", "compiled"])
def test_tapes_go_with_the_graph(way, compiled):
    """1000 forwards leave nothing behind; without the help of the garbage collector."""
    module = ours("gru")
    call, x = compiled(module) if way == "compiled" else module, random(2, 1, INPUT)
    assert not _ops._recorded
    for _ in range(1000):
        call(x)
    assert not _ops._recorded
    kept = [call(x)[0] for _ in range(5)]
    assert len(_ops._recorded) == 5
    del kept[1:]
    assert len(_ops._recorded) == 1
    loss = kept[0].sum()
    loss.backward(retain_graph=True)
    assert len(_ops._recorded) == 1
    loss.backward()
    assert not _ops._recorded  # although the loss and its graph live on
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("way", ["eager", "compiled"])
@pytest.mark.parametrize("reason", ["no_grad", "inference_mode", "frozen"])
def test_no_tape_without_need(reason, way, compiled):
    module = ours("lstm", num_layers=2)
    context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(reason)
    module.requires_grad_(reason != "frozen")
    call = compiled(module) if way == "compiled" else module
    with context() if context else contextlib.nullcontext():
        output, (h_n, c_n) = call(random(4, 3, INPUT))
    assert not _ops._recorded
    assert not any(result.requires_grad for result in (output, h_n, c_n))


@pytest.mark.parametrize("wanted", ["x", "h", "weight_hh_l0"])
def test_only_wanted_gradients(wanted, monkeypatch):
    """A single one wanted is right, the others stay None, and that by x is not computed for nothing."""
    module = ours("gru", num_layers=2)
    x, h = random(4, 3, INPUT), state_of(module, 3)
    tensors = {"x": leaves(x), "h": leaves(h), **dict(module.named_parameters())}
    module(tensors["x"], tensors["h"])[0].sum().backward()
    expected = tensors[wanted].grad.clone()
    module.zero_grad(set_to_none=True)

    asked = []
    differentiate = _ops._differentiate
    monkeypatch.setattr(
        _ops, "_differentiate", lambda *arguments: asked.append(arguments[-1]) or differentiate(*arguments)
    )
    tensors = {"x": x.clone(), "h": h.clone(), **dict(module.named_parameters())}
    for name, tensor in tensors.items():
        tensor.requires_grad_(name == wanted)
    module(tensors["x"], tensors["h"])[0].sum().backward()
    assert torch.equal(tensors[wanted].grad, expected)
    assert [name for name, tensor in tensors.items() if tensor.grad is not None] == [wanted]
    assert asked == [wanted == "x"]


@pytest.mark.parametrize("used", ["output", "h", "c"])
def test_single_result_used(used):
    module, theirs = pair("lstm")
    gradients = []
    for each in (module, theirs):
        output, (h_n, c_n) = each(random(4, 3, INPUT))
        {"output": output, "h": h_n, "c": c_n}[used].square().sum().backward()
        gradients.append([parameter.grad.numpy() for parameter in each.parameters()])
    compare("lstm", module, ([], gradients[0]), ([], gradients[1]), 4, 3)


# ---- what autograd asks for ----


def test_second_derivatives_of_compiled_calls_are_refused():
    module = ours("gru")
    x = leaves(random(4, 3, INPUT))
    output = torch.ops.gatedrnn.forward(*operator_arguments(module, x, state=False), 0.0, None)[0]
    first = torch.autograd.grad(module(x)[0].sum(), x)[0]
    (gradient,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    assert torch.equal(gradient, first)
    with pytest.raises(NotImplementedError, match="a compiled gradient was differentiated again"):
        gradient.sum().backward()


def test_gradients_of_a_graph_may_be_changed_in_place():
    module, x = ours("gru"), leaves(random(4, 3, INPUT))
    (gradient,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
    (plain,) = torch.autograd.grad(module(x)[0].sum(), x)
    assert torch.equal(gradient.mul_(2), 2 * plain)


def test_a_graph_after_a_backward_that_kept_none_is_refused():
    """By then the weights may be gone, and second derivatives by them would be taken for 0."""
    module, x = ours("gru"), leaves(random(4, 3, INPUT))
    output = module(x)[0].sum()
    torch.autograd.grad(output, x, retain_graph=True)
    with pytest.raises(NotImplementedError, match="create_graph=True was asked for after a backward without"):
        torch.autograd.grad(output, x, create_graph=True)


def test_weights_made_for_a_step_go_with_its_backward():
    module, base = ours("gru"), torch.zeros(1, requires_grad=True)
    made = {name: parameter.detach() + base for name, parameter in module.named_parameters()}
    h = state_of(module, 3) + base
    loss = torch.func.functional_call(module, made, (random(4, 3, INPUT), h))[0].sum()
    alive = [weakref.ref(tensor) for tensor in (*made.values(), h)]
    del made, h
    loss.backward()
    assert [ref() for ref in alive] == [None] * 5


def test_tensors_that_stand_for_the_negative_of_their_memory():
    module = ours("gru")
    plain = random(4, 3, INPUT), state_of(module, 3), random(4, 3, HIDDEN)
    lazy = [torch.complex(tensor, -tensor).conj().imag for tensor in plain]
    results = []
    for x, h, d_output in (plain, lazy):
        module.zero_grad()
        output, _ = module(x, h)
        output.backward(d_output)
        results.append([output.detach().numpy(), *(p.grad.numpy().copy() for p in module.parameters())])
    assert all(tensor.is_neg() for tensor in lazy)
    for actual, expected in zip(*results, strict=True):
        assert_same_bits(actual, expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own use of it
def test_forward_mode_is_refused():
    module = ours("gru")
    x = random(4, 3, INPUT)
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(lambda x: module(x)[0], (x,), (x,))
    forward_ad = torch.autograd.forward_ad
    with torch.no_grad(), forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        module(forward_ad.make_dual(x, x))


def test_input_written_before_backward_is_refused():
    module = ours("gru")
    x = random(4, 3, INPUT)
    output, _ = module(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_results_and_parameters_may_be_written_before_backward():
    """The tape has what it needs: gradients are those of the parameters that forward had."""
    module = ours("lstm")
    x, weights = random(4, 3, INPUT), list(module.parameters())
    expected = torch.autograd.grad(module(x)[0].sum(), weights)
    output, (h_n, c_n) = module(x)
    loss = output.sum()
    with torch.no_grad():
        for tensor in (output, h_n, c_n, *weights):
            tensor.zero_()
    assert all(map(torch.equal, torch.autograd.grad(loss, weights), expected))


def test_activation_checkpointing():
    """Forward is computed again in backward, with the same values dropped."""
    module = ours("gru", num_layers=2, dropout=0.5)
    x, weights = random(4, 3, INPUT), list(module.parameters())
    torch.manual_seed(1)
    expected = torch.autograd.grad(module(x)[0].square().sum(), weights)
    torch.manual_seed(1)
    output = torch.utils.checkpoint.checkpoint(lambda x: module(x)[0], x, use_reentrant=False)
    assert not _ops._recorded
    assert all(map(torch.equal, torch.autograd.grad(output.square().sum(), weights), expected))
    assert not _ops._recorded


def test_copied_tape_is_refused():
    module = ours("gru")
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda tensor: tensor):
        output, _ = module(random(4, 3, INPUT))
    with pytest.raises(RuntimeError, match=r"tape of this call is gone, .*saved_tensors_hooks"):
        output.sum().backward()
