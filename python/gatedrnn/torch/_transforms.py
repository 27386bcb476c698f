"""Calls that are differentiated twice, or transformed by ``torch.func``.

The engine has first derivatives. Where one is differentiated again, the call is computed anew by the formulas
of torch.nn, which PyTorch can differentiate as often as it likes. A transform over examples (``vmap``) calls
the engine for each of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from gatedrnn.torch import _ops
from gatedrnn.torch._formulas import formula, without_onednn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gatedrnn.torch._cache import NetworkCache
    from gatedrnn.torch._formulas import Options

    _Tensors = tuple[Tensor | None, ...]

_vjp: Any = torch.func.vjp


def transformed(
    cache: NetworkCache,
    options: Options,
    seed: Tensor | None,
    x: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    weights: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """Compute output, h_n and, for LSTM, c_n under a transform."""
    results: tuple[Tensor, ...] = _Forward.apply(cache, options, seed, x, h, c, *weights)  # type: ignore[no-untyped-call]
    return results[:-1]


def gradients(options: Options, by_x: bool, token: Tensor, *tensors: Tensor | None) -> _Tensors:
    """Compute the gradients by x, h, c and the weights, so that they can be differentiated again.

    Args:
        options: Of the call.
        by_x: Whether that by x is wanted.
        token: The tape.
        tensors: Gradients by output, h_n and c_n, and after them x, h, c and the weights.
    """
    results: _Tensors = _Backward.apply(options, by_x, token, *tensors)  # type: ignore[no-untyped-call]
    return results


class _ReverseMode(torch.autograd.Function):
    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError("gatedrnn.torch: forward-mode derivatives (jvp) are not implemented")


class _Forward(_ReverseMode):
    @staticmethod
    def forward(
        cache: NetworkCache,
        options: Options,
        seed: Tensor | None,
        x: Tensor,
        h: Tensor | None,
        c: Tensor | None,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        call = options.call(cache, weights, seed)
        output, state_n, token = _ops._forward(call, x, _ops._state(h, c))
        return *_ops._tensors(output, state_n), token

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, ctx.options, _, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[-1])
        ctx.save_for_backward(output[-1], *tensors)

    @staticmethod
    def backward(ctx: Any, *d_results: Tensor | None) -> tuple[Any, ...]:
        token, *tensors = ctx.saved_tensors
        d_output, d_h_n, d_c_n = (*d_results[:-1], None)[:3]
        by_x = ctx.needs_input_grad[3]
        return None, None, None, *gradients(ctx.options, by_x, token, d_output, d_h_n, d_c_n, *tensors)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[_Tensors, tuple[Any, ...]]:
        *results, tokens = _each(_Forward.apply, info.batch_size, in_dims, arguments)
        stacked, dims = _stacked(results)
        return (*stacked, _ops.joined_tokens(cast("tuple[Tensor, ...]", tokens))), (*dims, 0)


class _Backward(_ReverseMode):
    @staticmethod
    def forward(
        options: Options,
        by_x: bool,
        token: Tensor,
        d_output: Tensor | None,
        d_h_n: Tensor | None,
        d_c_n: Tensor | None,
        x: Tensor,
        h: Tensor | None,
        c: Tensor | None,
        *weights: Tensor,
    ) -> _Tensors:
        found = _ops.gradients(token, d_output, d_h_n, d_c_n, by_x)
        inputs = (x, h, c, *weights)
        return tuple(
            [
                None if gradient is None or tensor is None else gradient.to(tensor.dtype)
                for gradient, tensor in zip(found, inputs, strict=True)
            ]
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Tensors) -> None:
        ctx.options, _, _, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *again: Tensor) -> tuple[Any, ...]:
        if option := ctx.options.beyond_nn():
            raise NotImplementedError(
                f"gatedrnn.torch: second derivatives are those of torch.nn's formulas, which have no {option}"
            )
        return None, None, None, *_second(ctx.options, ctx.saved_tensors, again)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[_Tensors, tuple[Any, ...]]:
        return _stacked(_each(_Backward.apply, info.batch_size, in_dims, arguments))


# ---- over examples ----


def _each(
    function: Callable[..., _Tensors], count: int, in_dims: Sequence[int | None], arguments: Sequence[Any]
) -> list[tuple[Tensor | None, ...]]:
    """Call a function for each example; return its results, each with those of all examples."""
    if not count:
        raise ValueError("gatedrnn.torch: vmap: expected at least one example, got none")
    results = [
        function(*[a if dim is None else a.select(dim, i) for a, dim in zip(arguments, in_dims, strict=True)])
        for i in range(count)
    ]
    return list(zip(*results, strict=True))


def _stacked(results: Sequence[tuple[Any, ...]]) -> tuple[_Tensors, tuple[Any, ...]]:
    stacked = tuple([None if each[0] is None else torch.stack(each) for each in results])
    return stacked, tuple([None if tensor is None else 0 for tensor in stacked])


# ---- differentiated again ----


def _second(options: Options, saved: Sequence[Tensor | None], again: Sequence[Tensor | None]) -> _Tensors:
    """Differentiate the gradients by torch.nn's formulas.

    Args:
        options: Of the call.
        saved: Gradients by output, h_n and c_n, and after them x, h, c and the weights.
        again: Gradients by the gradients by the latter.

    Returns:
        Gradients by what was saved.
    """
    given = [i for i, tensor in enumerate(saved) if tensor is not None]
    wanted = [i for i in given if i >= 3]

    def first(*tensors: Tensor) -> list[Tensor]:
        by_place = dict(zip(given, tensors, strict=True))

        def results(*inputs: Tensor) -> tuple[Tensor, ...]:
            of_call: dict[int, Any] = dict(zip(wanted, inputs, strict=True))
            computed = formula(options, *cast(Any, [of_call.get(i) for i in range(3, len(saved))]))
            return tuple([result for i, result in enumerate(computed) if i in by_place])

        _, differentiate = _vjp(results, *[by_place[i] for i in wanted])
        return list(differentiate(tuple([by_place[i] for i in given if i < 3])))

    with without_onednn():
        made, differentiate = _vjp(first, *[saved[i] for i in given])
        d_made = [
            torch.zeros_like(m) if again[i - 3] is None else again[i - 3]
            for i, m in zip(wanted, made, strict=True)
        ]
        found = dict(zip(given, differentiate(d_made), strict=True))
    return tuple([found.get(i) for i in range(len(saved))])
