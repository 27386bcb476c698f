"""The engine as differentiable operations of torch.

There are two ways to the same computation. Where torch looks at the program (`torch.compile`, `torch.export`,
fake and meta tensors), the modules call the operators ``gatedrnn::run``, ``gatedrnn::forward`` and
``gatedrnn::backward``. Elsewhere they call `run` and `forward` here, without the dispatcher: through it,
forward and backward of a network cost 0.2 ms more (measured), which is as long as a small one takes.

Forward keeps a tape for backward, and what an operator gives must be tensors. So it gives one whose memory
belongs to an array that holds the tape (`_Token`): whoever keeps the tensor, or one that shares its memory,
keeps the tape, and nobody else does. Its address is how backward finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from gatedrnn.torch._cache import CachedNetwork, Stack, cache_numbered

if TYPE_CHECKING:
    import numpy.typing as npt

    from gatedrnn import _core
    from gatedrnn.torch._cache import Array

    Places = npt.NDArray[np.intp]

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
    """The owner of a byte of memory, alive as long as any tensor of that memory."""

    address = 0

    def __del__(self, forget: Callable[[int, None], object] = _recorded.pop) -> None:
        forget(self.address, None)


def _new_token(recorded: _Recorded) -> Tensor:
    owner = _Token(1, np.uint8)
    owner[0] = 0  # so that equal calls give equal tensors
    tensor = torch.from_numpy(owner)
    owner.address = address = tensor.data_ptr()
    _recorded[address] = recorded
    return tensor


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
) -> tuple[Array | None, Any, dict[str, Array]]:
    """Return the gradients by x, by the initial state, and by the parameters."""
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
    return d_x, d_state_0, gradients


# ---- directly, for eager mode ----


def run(call: Call, x: Tensor, h: Tensor | None, c: Tensor | None) -> tuple[Tensor, ...]:
    """Compute output, h_n and, for LSTM, c_n, without gradients."""
    return _tensors(*_run(call, x, _state(h, c)))


def _tensors(output: Array, state_n: Any) -> tuple[Tensor, ...]:
    if type(state_n) is tuple:
        return torch.from_numpy(output), torch.from_numpy(state_n[0]), torch.from_numpy(state_n[1])
    return torch.from_numpy(output), torch.from_numpy(state_n)


def forward(
    call: Call, x: Tensor, h: Tensor | None, c: Tensor | None, weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Compute the same with gradients. `weights` are those of ``call.cached``."""
    results: tuple[Tensor, ...] = cast(Any, _Recurrence).apply(call, x, h, c, *weights)
    return results


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: Call, x: Tensor, h: Tensor | None, c: Tensor | None, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        output, state_n, token = _forward(call, x, _state(h, c))
        ctx.set_materialize_grads(False)
        # x is saved so that torch refuses a backward after a write into it. The weights need not be: the
        # tape has those that it was made with.
        ctx.save_for_backward(x, token)
        ctx.others = h, c, *weights  # for `_final` alone, until a backward that needs no graph
        return _tensors(output, state_n)

    @staticmethod
    def backward(ctx: Any, *d_results: Tensor | None) -> tuple[Tensor | None, ...]:
        x, token = ctx.saved_tensors
        d_output, d_h_n, d_c_n = d_results if len(d_results) == 3 else (*d_results, None)
        needed = ctx.needs_input_grad
        d_x, d_state, d_weights = _differentiate(token, d_output, d_h_n, d_c_n, needed[1])
        d_h, d_c = d_state if type(d_state) is tuple else (d_state, None)
        arrays = (d_x, d_h, d_c, *d_weights.values())
        gradients = tuple(
            [
                torch.from_numpy(array) if wanted else None
                for array, wanted in zip(arrays, needed[1:], strict=True)
            ]
        )
        if not torch.is_grad_enabled():
            ctx.others = None  # or they would live as long as the results, also after this backward
        elif ctx.others is None:
            raise NotImplementedError(_NO_SECOND_DERIVATIVES)
        else:  # with create_graph=True
            sources = [t for t in (x, *ctx.others, *d_results) if t is not None and t.requires_grad]
            gradients = tuple([_final(gradient, sources) for gradient in gradients])
        return None, *gradients


def _final(gradient: Tensor | None, sources: Sequence[Tensor]) -> Tensor | None:
    """Mark a gradient as one that depends on its sources, but has no derivative by them, and says so."""
    if gradient is None:
        return None
    marked: Tensor = cast(Any, _Final).apply(gradient, *sources)
    return marked


class _Final(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.clone()  # that may be changed in place

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError(_NO_SECOND_DERIVATIVES)


_NO_SECOND_DERIVATIVES = (
    "gatedrnn.torch: has first derivatives only, but a gradient was differentiated again; use torch.nn's "
    "module where second derivatives are needed"
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
    d_x, d_state, d_weights = _differentiate(token, d_output, d_h_n, d_c_n, input_gradient)
    gradients = [
        torch.from_numpy(gradient).to(weight.dtype)
        for gradient, weight in zip(d_weights.values(), weights, strict=True)
    ]
    d_h, d_c = d_state if type(d_state) is tuple else (d_state, np.empty(0, d_state.dtype))
    by_x = x.new_empty(0) if d_x is None else torch.from_numpy(d_x)
    return by_x, torch.from_numpy(d_h), torch.from_numpy(d_c), gradients


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
torch.library.register_autograd("gatedrnn::forward", _gradients, setup_context=_keep, lib=_library)
torch.library.register_autograd("gatedrnn::backward", _refuse, lib=_library)
