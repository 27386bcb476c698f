"""torch.compile, torch.export and the operators of gatedrnn.torch."""

from __future__ import annotations

import io

import numpy as np
import pytest

from helpers import assert_same_bits

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("one_torch_thread")]
torch = pytest.importorskip("torch")
import torch.utils._pytree as pytree  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402
from torch._subclasses.schema_check_mode import SchemaCheckMode  # noqa: E402
from torch.nn.utils.rnn import (  # noqa: E402
    PackedSequence,
    pack_padded_sequence,
)

import gatedrnn.torch as gt  # noqa: E402
from gatedrnn.torch import _ops  # noqa: E402
from torch_modules import (  # noqa: E402
    HIDDEN,
    INPUT,
    every_cell,
    leaves,
    operator_arguments,
    ours,
    random,
    run,
    same_bits,
    state_of,
)


@every_cell
def test_compiled_is_eager(cell, compiled):
    module = ours(cell, num_layers=2, bidirectional=True, batch_first=True)
    compute = compiled(lambda x, state, lengths=None: module(x, state, lengths=lengths))
    x, state = random(3, 4, INPUT), state_of(module, 3)
    expected = run(module, x, state)
    same_bits(run(module, x, state, compute=compute), expected)
    with torch.no_grad():
        for parameter in module.parameters():  # the graph holds no numbers of theirs
            parameter.mul_(-0.5)
    changed = run(module, x, state)
    assert not np.array_equal(changed[0][0], expected[0][0])
    same_bits(run(module, x, state, compute=compute), changed)
    with torch.no_grad():
        assert_same_bits(compute(x, state)[0].numpy(), changed[0][0])
    assert not _ops._recorded


@pytest.mark.parametrize("lengths", [[2, 4, 0], torch.tensor([2, 4, 0])], ids=["list", "tensor"])
def test_compiled_lengths(lengths, compiled):
    module = ours("gru")
    x = random(4, 3, INPUT)
    compute = compiled(lambda x, state: module(x, state, lengths=lengths))
    same_bits(run(module, x, compute=compute), run(module, x, lengths=[2, 4, 0]))


def test_compiled_for_any_number_of_steps(compiled):
    module = ours("lstm")
    compute = compiled(module, dynamic=True)
    for steps, batch in [(4, 3), (7, 2), (9, 5)]:
        x, state = random(steps, batch, INPUT), state_of(module, batch)
        same_bits(run(module, x, state, compute=compute), run(module, x, state))


def test_compiled_packed_sequence(compiled):
    module = ours("lstm", bidirectional=True)
    packed = pack_padded_sequence(random(4, 3, INPUT), [2, 4, 1], enforce_sorted=False)
    compute = compiled(module)

    def both(data, state):
        output, state_n = compute(PackedSequence(data, *packed[1:]), state)
        return output.data, state_n

    def eager(data, state):
        output, state_n = module(PackedSequence(data, *packed[1:]), state)
        return output.data, state_n

    same_bits(
        run(module, packed.data, state_of(module, 3), compute=both),
        run(module, packed.data, state_of(module, 3), compute=eager),
    )


def test_compiled_dropout_is_seeded_by_torch(compiled):
    module = ours("gru", num_layers=2, dropout=0.5)
    compute, x = compiled(module), random(4, 3, INPUT)

    def seeded(function):
        def compute(x, state):
            torch.manual_seed(3)
            return function(x, state)

        return compute

    same_bits(run(module, x, compute=seeded(compute)), run(module, x, compute=seeded(module)))


def test_compiled_modules_have_their_own_weights(compiled):
    """In one graph, and by one compiled function after another."""
    first, second = ours("gru", HIDDEN, seed=0), ours("gru", HIDDEN, seed=1)
    x = random(4, 3, HIDDEN)
    expected = second(first(x)[0])[0]
    assert torch.equal(compiled(lambda x: second(first(x)[0])[0])(x), expected)
    either = compiled(lambda module, x: module(x)[0])
    for module in (first, second, first):
        assert torch.equal(either(module, x), module(x)[0])


@pytest.mark.parametrize("cell", ["lstm_projected", "gru_reset_before"])
@pytest.mark.parametrize(
    "steps",
    [
        {},
        {"lengths": torch.tensor([1, 4, 0])},
        {
            "mask": torch.arange(12).view(4, 3) % 5 > 0,
            "resets": torch.arange(12).view(4, 3) % 7 == 4,
            "repeats": True,
        },
    ],
    ids=["full", "lengths", "pieces"],
)
def test_opcheck(cell, steps):
    """Schemas, fake kernels and derivatives say the truth."""
    torch._dynamo.reset()
    module = ours(cell, num_layers=2, bidirectional=True)
    recorded = operator_arguments(module, leaves(random(4, 3, INPUT)), **steps)
    torch.library.opcheck(torch.ops.gatedrnn.forward.default, (*recorded, 0.5, torch.tensor(17)))
    torch.library.opcheck(torch.ops.gatedrnn.forward.default, (*recorded, 0.0, None))
    module.requires_grad_(False)
    plain = operator_arguments(module, random(4, 3, INPUT), **steps, state=False)
    torch.library.opcheck(torch.ops.gatedrnn.run.default, plain)

    output, h_n, c_n, token = torch.ops.gatedrnn.forward(*plain, 0.0, None)
    d_c_n = torch.ones_like(c_n) if module._stack.has_c else None
    for input_gradient in (True, False):
        arguments = (token, plain[0], plain[3], torch.ones_like(output), torch.ones_like(h_n), d_c_n)
        arguments = (*arguments, input_gradient, [3], *module._stack[:3])
        torch.library.opcheck(
            torch.ops.gatedrnn.backward.default, arguments, test_utils="test_autograd_registration"
        )
        # The rest as opcheck does, but for copying the token, which is no tape then.
        with SchemaCheckMode():
            real = torch.ops.gatedrnn.backward(*arguments)
        with FakeTensorMode() as mode:
            stand_ins = pytree.tree_map_only(torch.Tensor, mode.from_tensor, arguments)
            fake = torch.ops.gatedrnn.backward(*stand_ins)
        for a, b in zip(pytree.tree_leaves(real), pytree.tree_leaves(fake), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            assert a.stride() == b.stride() or a.numel() == 0


def test_export():
    module = ours("lstm", num_layers=2).eval().requires_grad_(False)
    steps = torch.export.Dim("steps")
    program = torch.export.export(module, (random(4, 3, INPUT),), dynamic_shapes=({0: steps},))
    called = [str(node.target) for node in program.graph.nodes if "gatedrnn" in str(node.target)]
    assert called == ["gatedrnn.run.default"]
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    x = random(9, 3, INPUT)
    expected, (h_n, c_n) = module(x)
    output, (h, c) = torch.export.load(file).module()(x)
    assert torch.equal(output, expected)
    assert torch.equal(h, h_n)
    assert torch.equal(c, c_n)


def test_graph_outlives_the_numbers_of_its_modules():
    """A number of no module, or of another's, makes no difference."""
    module, other = ours("gru"), ours("gru", seed=1)
    x = random(4, 3, INPUT)
    expected = module(x)[0]
    other(x)
    *arguments, _ = operator_arguments(module, x, state=False)
    for number in (0, other._cache.number, module._cache.number):
        assert torch.equal(torch.ops.gatedrnn.run(*arguments, number)[0], expected)


def test_fake_and_meta_tensors():
    with FakeTensorMode():
        output, (h_n, c_n) = gt.LSTM(INPUT, HIDDEN, 2, bidirectional=True, proj_size=3)(
            torch.empty(4, 6, INPUT)
        )
    assert (output.shape, h_n.shape, c_n.shape) == ((4, 6, 6), (4, 6, 3), (4, 6, HIDDEN))
    output, h_n = gt.GRU(INPUT, HIDDEN, device="meta", batch_first=True)(
        torch.empty(4, 6, INPUT, device="meta")
    )
    assert (output.shape, h_n.shape) == ((4, 6, HIDDEN), (1, 4, HIDDEN))
    assert output.is_meta
