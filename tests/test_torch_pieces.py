"""`mask` and `resets` in gatedrnn.torch: beside torch's own modules step by step, compiled, refused."""

from __future__ import annotations

import pytest

from helpers import assert_same_bits

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("one_torch_thread")]
torch = pytest.importorskip("torch")
from torch.nn.utils.rnn import pack_sequence  # noqa: E402

from torch_modules import (  # noqa: E402
    INPUT,
    NUMPY,
    compare,
    every_cell,
    leaves,
    ours,
    pair,
    parts,
    random,
    run,
    same_bits,
    state_of,
    torchs_cells,
)

STEPS, BATCH = 9, 7
both_outputs = pytest.mark.parametrize("mask_output", ["zeros", "previous"])


def flags(share, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(STEPS, BATCH, generator=generator) < share


MASK, RESETS = flags(0.7), flags(0.3, 1)


def step_by_step(theirs, mask, resets, mask_output):
    """torch's module as a function of all steps; the state is chosen between them."""

    def compute(x, state):
        outputs, state_n = [], parts(state)
        before = torch.zeros(BATCH, theirs.proj_size or theirs.hidden_size, dtype=x.dtype)
        for t in range(STEPS):
            valid = mask[t, :, None]
            kept = [torch.where(resets[t, :, None], 0, part) for part in state_n]
            given = tuple(kept) if len(kept) > 1 else kept[0]
            y, new = theirs(torch.where(valid, x[t : t + 1], 0), given)
            state_n = [torch.where(valid, a, b) for a, b in zip(parts(new), kept, strict=True)]
            before = torch.where(valid, y[0], before)
            outputs.append(before if mask_output == "previous" else torch.where(valid, y[0], 0))
        return torch.stack(outputs), tuple(state_n) if len(state_n) > 1 else state_n[0]

    return compute


@torchs_cells
@both_outputs
def test_against_torch(cell, mask_output):
    """Results and gradients, through torch's own autograd."""
    module, theirs = pair(cell, num_layers=2, dtype=torch.float64)
    x = random(STEPS, BATCH, INPUT, dtype=torch.float64)
    state = state_of(module, BATCH)

    def compute(x, state):
        return module(x, state, mask=MASK, resets=RESETS, mask_output=mask_output)

    actual = run(module, x, state, compute=compute)
    expected = run(theirs, x, state, compute=step_by_step(theirs, MASK, RESETS, mask_output))
    compare(cell, module, actual, expected, STEPS, BATCH)


@every_cell
@both_outputs
def test_bits_of_numpy_s_modules(cell, mask_output):
    module = ours(cell, num_layers=2, bidirectional=True)
    given = {"lengths": [9, 0, 3, 1, 8, 9, 5], "mask_output": mask_output}
    x, state = random(STEPS, BATCH, INPUT), state_of(module, BATCH)
    output, state_n = module(x, leaves(state), mask=MASK, resets=RESETS, **given)
    twin = NUMPY[type(module)](
        module.input_size,
        module.hidden_size,
        2,
        bidirectional=True,
        **{name: getattr(module, name) for name in module._own_options},
    )
    twin.load_state_dict(module.state_dict())
    arrays = tuple(part.numpy() for part in parts(state))
    expected = twin(
        x.numpy(),
        arrays if len(arrays) > 1 else arrays[0],
        mask=MASK.numpy(),
        resets=RESETS.tolist(),
        **given,
    )
    results = output.detach().numpy(), tuple(part.detach().numpy() for part in parts(state_n))
    assert_same_bits((results[0], results[1] if len(arrays) > 1 else results[1][0]), expected)
    with torch.no_grad():
        inferred = module(x, state, mask=MASK.tolist(), resets=RESETS.numpy(), **given)[0]
    assert_same_bits(inferred.numpy(), expected[0])


@pytest.mark.parametrize("form", [lambda f: f, lambda f: f.tolist()], ids=["tensors", "lists"])
@both_outputs
def test_compiled(form, mask_output, compiled):
    module = ours("lstm", num_layers=2, bidirectional=True)
    x, state = random(STEPS, BATCH, INPUT), state_of(module, BATCH)
    mask, resets = form(MASK), form(RESETS)

    def compute(x, state):
        return module(x, state, mask=mask, resets=resets, mask_output=mask_output)

    same_bits(run(module, x, state, compute=compiled(compute)), run(module, x, state, compute=compute))


def test_batch_first_and_unbatched():
    module = ours("gru", batch_first=True)
    x = random(STEPS, BATCH, INPUT)
    output, h_n = module(x.transpose(0, 1), mask=MASK.T, resets=RESETS.T)
    for row in range(BATCH):
        alone, h = module(x[:, row], mask=MASK[:, row], resets=RESETS[:, row])
        assert torch.equal(alone, output[row])
        assert torch.equal(h, h_n[:, row])


ERRORS = {
    "dtype": ({"mask": MASK.int()}, TypeError, "mask: expected booleans of shape (9, 7), got dtype int32"),
    "shape": ({"resets": MASK.T}, ValueError, "resets: expected booleans of shape (9, 7), got shape (7, 9)"),
    "word": (
        {"mask": MASK, "mask_output": "zero"},
        ValueError,
        "mask_output: expected 'zeros' or 'previous', got 'zero'",
    ),
}


@pytest.mark.parametrize(("arguments", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_what_is_refused(arguments, error, message):
    with pytest.raises(error) as caught:
        ours("gru")(random(STEPS, BATCH, INPUT), **arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["mask", "resets"])
def test_packed_sequences_are_refused(name):
    packed = pack_sequence([random(4, INPUT), random(2, INPUT)])
    with pytest.raises(ValueError, match=f"^{name}: expected None with a PackedSequence$"):
        ours("gru")(packed, **{name: MASK})
