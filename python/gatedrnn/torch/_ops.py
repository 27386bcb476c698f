"""The engine as differentiable operations of torch.

There are two ways to the same computation. Where torch looks at the program (`torch.compile`, `torch.export`,
fake and meta tensors), the modules call the operators ``gatedrnn::run``, ``gatedrnn::forward`` and
``gatedrnn::backward``. Elsewhere they call `run` and `forward` of `_eager`, without the dispatcher: through
it, forward and backward of a network cost 0.2 ms more (measured), which is as long as a small one takes.

Forward keeps a tape for backward, and what an operator gives must be tensors. So it gives one whose memory
belongs to an array that holds the tape (`_Token`): whoever keeps the tensor, or one that shares its memory,
keeps the tape, and nobody else does. Its address is how backward finds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from gatedrnn._parameters import CELLS
from gatedrnn.torch._cache import CachedNetwork, Stack, cache_numbered

if TYPE_CHECKING:
    import numpy.typing as npt

    from gatedrnn import _core
    from gatedrnn.torch._cache import Array

    Places = npt.NDArray[np.intp]

_BATCHED: Any = torch._C._parse_dispatch_key("Batched")
_Lengths = Any  # None, or integers as a list or array
_Flags = Any  # None, or booleans as a list or array


class Call(NamedTuple):
    """What a call has besides tensors that may need gradients."""

    cached: CachedNetwork
    lengths: _Lengths
    mask: _Flags
    resets: _Flags
    repeats: bool  # whether skipped steps have the output of the step before
    batch_first: bool
    sequence_packed: bool  # whether x holds the rows of a PackedSequence, of decreasing lengths
    dropout: float
    dropout_seed: int


class _Padding(NamedTuple):
    """Where the rows of a PackedSequence, time step after time step, stand in an array (T, B, ...)."""

    steps: int
    batch: int
    places: Places | None  # None for everywhere

    def added(self, rows: Array) -> Array:
        shape = self.steps, self.batch, rows.shape[1]
        if self.places is None:
            return rows.reshape(shape)
        padded = np.empty((self.steps * self.batch, shape[2]), rows.dtype)  # the rest is never computed with
        padded[self.places] = rows
        return padded.reshape(shape)

    def removed(self, padded: Array) -> Array:
        rows = padded.reshape(-1, padded.shape[2])
        return rows if self.places is None else rows.take(self.places, axis=0)


class _Recorded(NamedTuple):
    """What backward needs of a call."""

    cached: CachedNetwork
    tape: _core.Tape
    padding: _Padding | None  # where x was packed


_recorded: dict[int, _Recorded] = {}  # by address of the token


class _Token(np.ndarray[Any, np.dtype[np.uint8]]):
    """The owner of some bytes of memory, alive as long as any tensor of that memory."""

    addresses = range(0)

    def __del__(self, forget: Callable[[int, None], object] = _recorded.pop) -> None:
        for address in self.addresses:
            forget(address, None)


def _new_token(*recorded: _Recorded) -> Tensor:
    """Make a token with a byte for each tape."""
    owner = _Token(len(recorded), np.uint8)
    owner[:] = 0  # so that equal calls give equal tensors
    tensor = torch.from_numpy(owner)
    start = tensor.data_ptr()
    owner.addresses = range(start, start + len(recorded))
    _recorded.update(zip(owner.addresses, recorded, strict=True))
    return tensor


def joined_tokens(tokens: Sequence[Tensor]) -> Tensor:
    """Make one token of those of some examples: each element of it has the address by which a tape is found.

    Within further transforms there are no addresses; a backward that needs them says that it has no tape.
    """
    if any([torch._C._functorch.is_functorch_wrapped_tensor(token) for token in tokens]):
        return torch.stack(list(tokens))
    return _new_token(*[_recorded_with(token) for token in tokens]).unsqueeze(1)


def _recorded_with(token: Tensor) -> _Recorded:
    try:
        return _recorded[token.data_ptr()]
    except KeyError:
        raise RuntimeError(
            "gatedrnn.torch: the tape of this call is gone, because what was saved for backward was copied "
            "by a hook (torch.autograd.graph.saved_tensors_hooks)"
        ) from None


# ---- NumPy in, NumPy out ----


def _array(tensor: Tensor) -> Array:
    """Share the memory of a tensor, unless it stands for the negative of what is in it."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    array: Array = tensor.numpy()
    return array


def _state(h: Tensor | None, c: Tensor | None) -> Any:
    if h is None:
        return None
    return _array(h) if c is None else (_array(h), _array(c))


def _padded(call: Call, x: Tensor) -> tuple[Array, _Padding | None]:
    """Return x as the engine takes it."""
    if not call.sequence_packed:
        return _array(x), None
    lengths = call.lengths
    steps, batch, places = int(lengths[0]), len(lengths), None
    if steps * batch != len(x):
        places = np.flatnonzero(np.arange(steps)[:, np.newaxis] < lengths)
    padding = _Padding(steps, batch, places)
    return padding.added(_array(x)), padding


def _run(call: Call, x: Tensor, state: Any) -> tuple[Array, Any]:
    """Compute without a tape."""
    array, padding = _padded(call, x)
    output, state_n = call.cached.network.infer(
        array, state, call.lengths, None, call.batch_first, call.mask, call.resets, call.repeats
    )
    return output if padding is None else padding.removed(output), state_n


def _forward(call: Call, x: Tensor, state: Any) -> tuple[Array, Any, Tensor]:
    """Compute and return the token of the tape as well."""
    array, padding = _padded(call, x)
    recompute, owner = False, None
    x_stays = True  # it is saved for backward, and torch counts the writes into it
    dropout = call.dropout, call.dropout_seed
    output, state_n, tape = call.cached.network.forward(
        array,
        state,
        call.lengths,
        call.batch_first,
        *dropout,
        recompute,
        owner,
        x_stays,
        call.mask,
        call.resets,
        call.repeats,
    )
    token = _new_token(_Recorded(call.cached, tape, padding))
    return output if padding is None else padding.removed(output), state_n, token


def _differentiate(
    token: Tensor, d_output: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None, input_gradient: bool
) -> tuple[Array | None, Array, Array | None, dict[str, Array]]:
    """Return the gradients by x, h and c, and those by the parameters."""
    cached, tape, padding = _recorded_with(token)
    gradients = cached.new_gradients()
    d_y = None if d_output is None else _array(d_output)
    d_state: Any = None if d_h_n is None else _array(d_h_n)
    if cached.stack.has_c and (d_h_n is not None or d_c_n is not None):
        d_state = (d_state, None if d_c_n is None else _array(d_c_n))
    if d_y is not None and padding is not None:
        d_y = padding.added(d_y)
    d_x, d_state_0 = cached.network.backward(tape, d_y, d_state, gradients, False, input_gradient)
    if d_x is not None and padding is not None:
        d_x = padding.removed(d_x)
    d_h, d_c = d_state_0 if type(d_state_0) is tuple else (d_state_0, None)
    return d_x, d_h, d_c, gradients


def gradients(
    token: Tensor, d_output: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None, input_gradient: bool
) -> list[Tensor | None]:
    """Return the gradients by x, h, c and each parameter."""
    if _is_batched(d_output) or _is_batched(d_h_n) or _is_batched(d_c_n):
        return _gradients_of_each(token, d_output, d_h_n, d_c_n, input_gradient)
    d_x, d_h, d_c, by_weights = _differentiate(token, d_output, d_h_n, d_c_n, input_gradient)
    return [
        None if array is None else torch.from_numpy(array) for array in (d_x, d_h, d_c, *by_weights.values())
    ]


def _is_batched(tensor: Tensor | None) -> bool:
    """Tell whether this stands for one of several, as with ``is_grads_batched=True``."""
    return tensor is not None and torch._C._dispatch_keys(tensor).has(_BATCHED)


def _gradients_of_each(token: Tensor, *rest: Any) -> list[Tensor | None]:
    """Return them for each of several; torch goes through operators whose arguments are plain tensors."""
    *d_results, input_gradient = rest
    nothing = torch.empty(0)
    given = [nothing if tensor is None else tensor for tensor in d_results]
    d_x, d_h, d_c, flat = torch.ops.gatedrnn.backward_of_each(token, *given, input_gradient)
    cached = _recorded_with(token).cached
    by_weights = [flat[place].reshape(shape) for _, place, shape in cached.places]
    return [d_x if input_gradient else None, d_h, d_c if cached.stack.has_c else None, *by_weights]


def _backward_of_each(token: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *d_results, input_gradient = rest
    given = [tensor if tensor.numel() else None for tensor in d_results]
    d_x, d_h, d_c, by_weights = _differentiate(token, given[0], given[1], given[2], input_gradient)
    flat = np.concatenate([array.ravel() for array in by_weights.values()])
    nothing = np.empty(0, d_h.dtype)
    return tuple([torch.from_numpy(nothing if array is None else array) for array in (d_x, d_h, d_c, flat)])


def _tensors(output: Array, state_n: Any) -> tuple[Tensor, ...]:
    if type(state_n) is tuple:
        return torch.from_numpy(output), torch.from_numpy(state_n[0]), torch.from_numpy(state_n[1])
    return torch.from_numpy(output), torch.from_numpy(state_n)


_NO_SECOND_DERIVATIVES = (
    "gatedrnn.torch: a compiled gradient was differentiated again; second derivatives are for calls that are "
    "not compiled"
)

# ---- through the dispatcher ----

_library: Any = cast(Any, torch.library).Library("gatedrnn", "DEF")

_ARGUMENTS = (
    "Tensor x, Tensor? h, Tensor? c, Tensor[] weights, Tensor? lengths, Tensor? mask, Tensor? resets, "
    "bool repeats, bool batch_first, bool sequence_packed, str cell, int num_layers, bool bidirectional, "
    "bool bias, str? precision, str functions, bool reverse, bool learn_state, SymInt cache"
)


def _define(name: str, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
    _library.define(name + schema)
    _library.impl(name, kernel, "CPU")
    torch.library.register_fake(f"gatedrnn::{name}", fake, lib=_library)


def _call(
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    mask: Tensor | None,
    resets: Tensor | None,
    repeats: bool,
    batch_first: bool,
    sequence_packed: bool,
    *stack_and_cache: Any,
    for_backward: bool = False,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Call:
    *stack, cache = stack_and_cache
    cached = cache_numbered(cache).get(Stack(*stack), weights, for_backward)
    of_steps = [None if tensor is None else tensor.numpy() for tensor in (lengths, mask, resets)]
    return Call(
        cached,
        of_steps[0],
        of_steps[1],
        of_steps[2],
        repeats,
        batch_first,
        sequence_packed,
        dropout,
        0 if seed is None else int(seed),
    )


def _three(output: Array, state_n: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Make tensors of output, h_n and c_n; an operator gives all three, so c_n is empty but for LSTM."""
    h_n, c_n = state_n if type(state_n) is tuple else (state_n, np.empty(0, output.dtype))
    return torch.from_numpy(output), torch.from_numpy(h_n), torch.from_numpy(c_n)


def _run_kernel(x: Tensor, h: Tensor | None, c: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _three(*_run(_call(*rest), x, _state(h, c)))


def _run_fake(x: Tensor, h: Tensor | None, c: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    weights, lengths, _mask, _resets, _repeats, batch_first, sequence_packed, *stack_and_cache = rest
    stack = Stack(*stack_and_cache[:-1])
    batch = batch_of(x, lengths, batch_first, sequence_packed)
    h_n, c_n = _fake_state(x, stack, weights, batch)
    return x.new_empty((*x.shape[:-1], h_n.shape[-1] * (1 + stack.bidirectional))), h_n, c_n


def _fake_state(
    x: Tensor, stack: Stack, weights: Sequence[Tensor], batch: Sequence[int]
) -> tuple[Tensor, Tensor]:
    _, hidden_size, state_size = stack.sizes(weights)
    h = x.new_empty((stack.tracks, *batch, state_size))
    return h, x.new_empty((stack.tracks, *batch, hidden_size) if stack.has_c else 0)


def batch_of(x: Tensor, lengths: Tensor | None, batch_first: bool, sequence_packed: bool) -> tuple[int, ...]:
    """Return the number of rows, or nothing for an unbatched x."""
    if sequence_packed:
        assert lengths is not None
        return (lengths.shape[0],)
    return () if x.dim() == 2 else (x.shape[0 if batch_first else 1],)


def _forward_kernel(x: Tensor, h: Tensor | None, c: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    *rest_of_run, dropout, seed = rest
    call = _call(*rest_of_run, for_backward=True, dropout=dropout, seed=seed)
    output, state_n, token = _forward(call, x, _state(h, c))
    return *_three(output, state_n), token


def _forward_fake(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return *_run_fake(x, *rest[:-2]), x.new_empty(1, dtype=torch.uint8)


def _backward_kernel(
    token: Tensor, x: Tensor, weights: Sequence[Tensor], *rest: Any
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    d_output, d_h_n, d_c_n, input_gradient = rest[:4]
    if d_c_n is not None and not d_c_n.numel():  # by the empty c_n, or of no rows
        d_c_n = None
    d_x, d_h, d_c, *by_weights = gradients(token, d_output, d_h_n, d_c_n, input_gradient)
    by_state = [x.new_empty(0) if g is None else g for g in (d_x, d_h, d_c)]
    by_weights = [cast(Tensor, g).to(weight.dtype) for g, weight in zip(by_weights, weights, strict=True)]
    return by_state[0], by_state[1], by_state[2], cast("list[Tensor]", by_weights)


def _backward_fake(
    token: Tensor, x: Tensor, weights: Sequence[Tensor], *rest: Any
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    input_gradient, batch, cell, num_layers, bidirectional = rest[3:]
    stack = Stack(cell, num_layers, bidirectional, bias=False)  # which has no influence here
    d_x = x.new_empty(x.shape if input_gradient else 0)
    return d_x, *_fake_state(x, stack, weights, batch), [w.new_empty(w.shape) for w in weights]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, h, c, weights, lengths = inputs[:5]
    batch_first, sequence_packed, cell, num_layers, bidirectional = inputs[8:13]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[3], x, *weights)
    ctx.batch = batch_of(x, lengths, batch_first, sequence_packed)
    ctx.state_given = h is not None, c is not None
    ctx.rest = cell, num_layers, bidirectional


def _gradients(
    ctx: Any, d_output: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None, d_token: None
) -> tuple[Any, ...]:
    token, x, *weights = ctx.saved_tensors
    needed = ctx.needs_input_grad
    d_x, d_h, d_c, d_weights = torch.ops.gatedrnn.backward(
        token, x, weights, d_output, d_h_n, d_c_n, needed[0], ctx.batch, *ctx.rest
    )
    h_given, c_given = ctx.state_given
    d_state = d_h if h_given else None, d_c if c_given else None
    return d_x if needed[0] else None, *d_state, d_weights, *[None] * 17


def _refuse(ctx: Any, *_: Any) -> None:
    raise NotImplementedError(_NO_SECOND_DERIVATIVES)


_library.define(
    "backward_of_each(Tensor tape, Tensor d_output, Tensor d_h_n, Tensor d_c_n, bool input_gradient) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
_library.impl("backward_of_each", _backward_of_each, "CPU")
_define("run", f"({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)", _run_kernel, _run_fake)
_define(
    "forward",
    f"({_ARGUMENTS}, float dropout, Tensor? dropout_seed) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward_kernel,
    _forward_fake,
)
_define(
    "backward",
    "(Tensor tape, Tensor x, Tensor[] weights, Tensor? d_output, Tensor? d_h_n, Tensor? d_c_n, "
    "bool input_gradient, SymInt[] batch, str cell, int num_layers, bool bidirectional) "
    "-> (Tensor, Tensor, Tensor, Tensor[])",
    _backward_kernel,
    _backward_fake,
)


def _flops(x: Sequence[int], weights: Sequence[Sequence[int]]) -> int:
    """Count multiplications and additions in products, from shapes, as `torch.utils.flop_counter` does."""
    return 2 * math.prod(x[:-1]) * sum([math.prod(w) for w in weights if len(w) == 2])


def _forward_flops(x: Any, h: Any, c: Any, weights: Any, *rest: Any, **_: Any) -> int:
    cell, learn_state = rest[6], rest[13]
    return _flops(x, weights[: -1 - CELLS[cell].has_c] if learn_state else weights)


def _backward_flops(token: Any, x: Any, weights: Any, *rest: Any, **_: Any) -> int:
    """Count those by weights, and as many by inputs and states; those by x only where it is asked for."""
    input_gradient, _, _, _, bidirectional = rest[3:]
    by_x = 0 if input_gradient else (1 + bidirectional) * _flops(x, weights[:1])
    return 2 * _flops(x, weights) - by_x


torch.library.register_autograd("gatedrnn::forward", _gradients, setup_context=_keep, lib=_library)
torch.library.register_autograd("gatedrnn::backward", _refuse, lib=_library)
register_flop_formula([torch.ops.gatedrnn.run, torch.ops.gatedrnn.forward])(_forward_flops)
register_flop_formula(torch.ops.gatedrnn.backward)(_backward_flops)
