"""torch.nn's formulas for a call of ours, which PyTorch can differentiate as often as it likes."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gatedrnn.torch import _ops

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gatedrnn.torch._cache import NetworkCache, Stack

_FORMULAS: dict[str, Any] = {
    "lstm": torch._VF.lstm,
    "gru": torch._VF.gru,
    "rnn_tanh": torch._VF.rnn_tanh,
    "rnn_relu": torch._VF.rnn_relu,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Options:
    """What a call has besides tensors and weights: one object to torch, which looks into tuples."""

    stack: Stack
    lengths: Any
    mask: Any
    resets: Any
    repeats: bool
    batch_first: bool
    sequence_packed: bool
    dropout: float

    @classmethod
    def of(cls, call: _ops.Call) -> Options:
        return cls(call.cached.stack, *call[1:-1])

    def call(self, cache: NetworkCache, weights: Sequence[Tensor], seed: Tensor | None) -> _ops.Call:
        cached, dropout_seed = cache.get(self.stack, weights, True), 0 if seed is None else int(seed)
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)[1:]}
        return _ops.Call(cached, dropout_seed=dropout_seed, **own)

    def beyond_nn(self) -> str:
        """Return what torch.nn has not, or nothing."""
        given = {
            "this cell": self.stack.cell not in _FORMULAS,
            "direction='reverse'": self.stack.reverse,
            "learn_state=True": self.stack.learn_state,
            "mask=": self.mask is not None,
            "resets=": self.resets is not None,
            "the same dropout": self.dropout > 0,
        }
        return next((name for name, is_given in given.items() if is_given), "")


def formula(
    options: Options, x: Tensor, h: Tensor | None, c: Tensor | None, *weights: Tensor
) -> tuple[Tensor, ...]:
    """Compute a call by torch.nn's formulas: output, h_n and, for LSTM, c_n."""
    batched = x.dim() == 3
    if options.sequence_packed:
        places = _places(options.lengths)
        shape = max(options.lengths), len(options.lengths)
        padded = x.new_zeros(shape[0] * shape[1], x.shape[1]).index_copy(0, places, x)
        output, *states = _padded(options, padded.reshape(*shape, -1), h, c, weights)
        return output.flatten(0, 1)[places], *states
    if not batched:
        state = [None if s is None else s.unsqueeze(1) for s in (h, c)]
        return tuple([r.squeeze(1) for r in _padded(options, x.unsqueeze(1), state[0], state[1], weights)])
    if options.batch_first:
        output, *states = _padded(options, x.transpose(0, 1), h, c, weights)
        return output.transpose(0, 1), *states
    return _padded(options, x, h, c, weights)


def _places(lengths: Any) -> Tensor:
    """Return where the rows of a PackedSequence stand among steps times batch."""
    is_valid = np.arange(max(lengths))[:, np.newaxis] < np.asarray(lengths)
    return torch.from_numpy(np.flatnonzero(is_valid))


def _padded(
    options: Options, x: Tensor, h: Tensor | None, c: Tensor | None, weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Compute for an x of shape (T, B, I), the rows of one length at a time."""
    stack, steps, batch = options.stack, x.shape[0], x.shape[1]
    _, hidden_size, state_size = stack.sizes(weights)
    h = x.new_zeros(stack.tracks, batch, state_size) if h is None else h
    c = x.new_zeros(stack.tracks, batch, hidden_size) if c is None else c
    layers = (stack.bias, stack.num_layers, 0.0, False, stack.bidirectional, False)

    def compute(length: int, rows: Any) -> tuple[Tensor, ...]:
        hx = (h[:, rows], c[:, rows]) if stack.has_c else h[:, rows]
        if length == 0:
            width = state_size * (1 + stack.bidirectional)
            return x.new_zeros(steps, len(rows), width), *(hx if stack.has_c else (hx,))
        output, *states = _FORMULAS[stack.cell](x[:length, rows], hx, weights, *layers)
        return torch.nn.functional.pad(output, (0, 0, 0, 0, 0, steps - length)), *states

    if options.lengths is None:
        return compute(steps, slice(None))
    lengths = np.asarray(options.lengths)
    groups = [(int(length), np.flatnonzero(lengths == length)) for length in np.unique(lengths)]
    order = torch.from_numpy(np.argsort(np.concatenate([rows for _, rows in groups])))
    results = [compute(length, torch.from_numpy(rows)) for length, rows in groups]
    return tuple([torch.cat(each, 1)[:, order] for each in zip(*results, strict=True)])


@contextlib.contextmanager
def without_onednn() -> Iterator[None]:
    """Keep its LSTM out, which has no second derivatives."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)
