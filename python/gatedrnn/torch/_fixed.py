"""Weights that stay as they are for a while, so that calls need not look at them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

from torch import nn

from gatedrnn import _checks
from gatedrnn.torch._recurrent import _Recurrent

if TYPE_CHECKING:
    from collections.abc import Iterator

_M = TypeVar("_M", bound=nn.Module)


@contextlib.contextmanager
def fixed(model: _M) -> Iterator[_M]:
    """Promise that no weight of a model is written within the block.

    A module of `gatedrnn.torch` looks at all of its weights in each call, since PyTorch does not tell of
    every write, and packs them again where they changed. For single steps that is most of the time. Within
    the block it looks once. ::

        with gatedrnn.torch.fixed(model), torch.inference_mode():
            for _ in range(1000):
                h = model(x, h)

    Other tensors in the place of weights, as `load_state_dict(assign=True)` or `to()` put there, are noticed
    at once. Blocks may be nested, and be in several threads at a time.

    Args:
        model: A module of `gatedrnn.torch`, or a model with some in it.

    Yields:
        The model.

    Raises:
        TypeError: `model` is no module.
        ValueError: There is no module of `gatedrnn.torch` in it.
        RuntimeError: At the end of the block, where weights were written in it after all: results since then
            may be those of the weights before.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {_checks.described(model)}")
    caches = {name: m._cache for name, m in model.named_modules() if isinstance(m, _Recurrent)}
    if not caches:
        raise ValueError("model: expected modules of gatedrnn.torch in it, got none; see accelerate")
    for cache in caches.values():
        cache.fix()
    written: list[str] = []
    try:
        yield model
    finally:
        written += [name or "the model" for name, cache in caches.items() if cache.release()]
    if written:
        raise RuntimeError(f"fixed: expected weights that stay, got writes to those of {', '.join(written)}")
