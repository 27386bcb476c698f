"""Calls in eager mode: to the engine directly, without torch's dispatcher (see `_ops`)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gatedrnn.torch._formulas import Options
from gatedrnn.torch._ops import _forward, _run, _state, _tensors, gradients
from gatedrnn.torch._transforms import gradients as gradients_with_graph

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gatedrnn.torch._ops import Call

# Whether a transform of torch.func is at work. (A torch without this name refuses on its own.)
transforming = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)


def run(call: Call, x: Tensor, h: Tensor | None, c: Tensor | None) -> tuple[Tensor, ...]:
    """Compute output, h_n and, for LSTM, c_n, without gradients."""
    if torch.autograd.profiler._is_profiler_enabled:
        with torch.autograd.profiler.record_function(f"gatedrnn::{call.cached.stack.cell}"):
            return _tensors(*_run(call, x, _state(h, c)))
    return _tensors(*_run(call, x, _state(h, c)))


def forward(
    call: Call, x: Tensor, h: Tensor | None, c: Tensor | None, weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Compute the same with gradients. `weights` are those of ``call.cached``."""
    results: tuple[Tensor, ...] = _function_of(call.cached.stack.cell).apply(call, x, h, c, *weights)
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
        ctx.call = call
        ctx.others = h, c, *weights  # for `_with_graph` alone, until a backward that needs no graph
        ctx.versions = _versions(h, c)
        return _tensors(output, state_n)

    @staticmethod
    def backward(ctx: Any, *d_results: Tensor | None) -> tuple[Tensor | None, ...]:
        x, token = ctx.saved_tensors
        d_output, d_h_n, d_c_n = d_results if len(d_results) == 3 else (*d_results, None)
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled() or transforming():
            return None, *_with_graph(ctx, token, d_output, d_h_n, d_c_n, x)
        ctx.others = ctx.call = None  # or they would live as long as the results, also after this backward
        found = gradients(token, d_output, d_h_n, d_c_n, needed[1])
        return None, *[g if wanted else None for g, wanted in zip(found, needed[1:], strict=True)]


@functools.cache
def _function_of(cell: str) -> Any:
    """Return `_Recurrence` under the name that profilers and graphs show."""
    return type(f"gatedrnn::{cell}", (_Recurrence,), {})


def _with_graph(ctx: Any, token: Tensor, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Compute the gradients with create_graph=True, or under a transform."""
    if ctx.others is None:
        raise NotImplementedError(
            "gatedrnn.torch: create_graph=True was asked for after a backward without it; ask both times"
        )
    if ctx.call.cached.is_written() or ctx.versions != _versions(*ctx.others[:2]):
        raise RuntimeError(
            "gatedrnn.torch: create_graph=True was asked for, but weights or states were written to since"
        )
    options = Options.of(ctx.call)
    return gradients_with_graph(options, ctx.needs_input_grad[1], token, *tensors, *ctx.others)


def _versions(*states: Tensor | None) -> list[int]:
    return [s._version for s in states if s is not None and not s.is_inference()]
