"""Whole models: torch.nn's recurrent modules inside them replaced by ours, and back."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from gatedrnn import _checks
from gatedrnn._options import checked_precision
from gatedrnn.torch._cache import DTYPE_NAMES, DTYPES
from gatedrnn.torch._cells import GRUCell, LSTMCell, RNNCell
from gatedrnn.torch._drop_in import nn_module, with_all_of
from gatedrnn.torch._modules import GRU, LSTM, RNN
from gatedrnn.torch._recurrent import _Recurrent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    _Made = tuple[nn.Module | None, str]  # a module in place of another, or why there is none

_M = TypeVar("_M", bound=nn.Module)

_OURS: dict[str, Any] = {cls.__name__: cls for cls in (LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell)}
_THEIRS: dict[str, Any] = {name: ours._nn_class for name, ours in _OURS.items()}
# How far outputs may be apart, of the largest or of 1; in less than float32 errors are those of operands.
_ALLOWED = {None: 1e-4, "bfloat16x3": 1e-3, "bfloat16": 0.1, "int8": 0.2}


def accelerate(model: _M, *, precision: str | None = None, verify: Any = None, inplace: bool = False) -> _M:
    """Replace every LSTM, GRU, RNN and cell of ``torch.nn`` in a model by ours, which do the same faster.

    Parameters are kept, the very tensors where `inplace`, so optimisers and state dictionaries go on; hooks
    and the mode (train or eval) go along. A module that stands in several places stays one. What is left,
    with the reason, is in a warning: subclasses, whose equations nobody knows, and modules on other devices
    than the CPU. Parametrizations are kept. `inspect` lists everything.

    Args:
        model: Any module; itself an LSTM, it becomes ours.
        precision: How products are computed where parameters are float32; see `LSTM`.
        verify: An example input: a tensor, a tuple of arguments or a dict of them by name. The model is run
            on it before and after, in eval mode, and where results differ by more than rounding, nothing
            changes and an error is raised.
        inplace: Whether to change `model` itself, not a copy.

    Returns:
        The model.

    Raises:
        TypeError: `model` is no module.
        ValueError: `precision` is unknown.
        RuntimeError: Results differ, as `verify` found.
    """
    checked_precision("cpu", precision, DTYPES[torch.float32])

    def make(module: nn.Module) -> _Made:
        return _ours(module, precision)

    return _replaced(model, "accelerate", make, verify, precision, inplace)


def restore(model: _M, *, verify: Any = None, inplace: bool = False) -> _M:
    """Put ``torch.nn``'s modules back in place of ours, with the parameters that they have now.

    What leaves PyTorch, by ONNX, TorchScript or ``torch.export``, then does so without this package.

    Args:
        model: Any module.
        verify: As for `accelerate`.
        inplace: Whether to change `model` itself, not a copy.

    Returns:
        The model. Modules with options that ``torch.nn`` has not are left, which a warning says.

    Raises:
        TypeError: `model` is no module.
        RuntimeError: Results differ, as `verify` found.
    """
    return _replaced(model, "restore", _of_torch, verify, None, inplace)


def inspect(model: nn.Module) -> dict[str, str]:
    """List the recurrent modules in a model.

    Args:
        model: Any module.

    Returns:
        By name, in the model's order: what a module of ours is, or why one of torch.nn's would be left by
        `accelerate`, or that it would not.

    Raises:
        TypeError: `model` is no module.
    """
    _check_module(model)
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, _Recurrent):
            found[name] = f"gatedrnn.torch.{module}"
        elif _is_recurrent(module):
            reason = _reason_to_leave(module)
            found[name] = f"torch.nn.{module}, {f'left: {reason}' if reason else 'not accelerated'}"
    return found


# ---- one module ----


def _is_recurrent(module: nn.Module) -> bool:
    """Tell whether a module is torch.nn's, and not ours."""
    return isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and not isinstance(module, _Recurrent)


def _reason_to_leave(module: nn.Module) -> str:
    """Say why a module of torch.nn's cannot be one of ours, or nothing."""
    cls = type_before_parametrizations(module)
    if cls not in _THEIRS.values():
        return f"{cls.__name__} is a class of its own"
    parameters = dict(module.named_parameters(recurse=False))
    if is_parametrized(module):
        parametrizations = cast(nn.ModuleDict, module.parametrizations)
        parameters |= {name: getattr(module, name) for name in parametrizations}
    of_cell = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if module.bias else ()))
    if parameters.keys() != set(getattr(module, "_flat_weights_names", of_cell)):
        return "it has other parameters"
    devices = {parameter.device.type for parameter in parameters.values()}
    if devices != {"cpu"}:
        return f"its parameters are on {', '.join(sorted(devices))}"
    dtypes = {parameter.dtype for parameter in parameters.values()}
    if len(dtypes) != 1 or not dtypes <= set(DTYPES):
        return f"its parameters are {', '.join(sorted(map(str, dtypes)))}, not {DTYPE_NAMES}"
    return ""


def _ours(module: nn.Module, precision: str | None) -> _Made:
    if not _is_recurrent(module):
        return None, ""
    if reason := _reason_to_leave(module):
        return None, reason
    cls = _OURS[type_before_parametrizations(module).__name__]
    dtype = next(module.parameters()).dtype
    low = precision if DTYPES[dtype] == DTYPES[torch.float32] else None
    return with_all_of(module, cls, dtype, cls._nn_options, {"precision": low}), ""


def _of_torch(module: nn.Module) -> _Made:
    if not isinstance(module, _Recurrent):
        return None, ""
    cls = type_before_parametrizations(module)
    if cls not in _OURS.values():
        return None, f"{cls.__name__} is a class of its own"
    if option := module._beyond_nn():
        return None, f"torch.nn.{cls.__name__} has no {option}"
    return nn_module(module), ""


# ---- a model ----


class _Place(NamedTuple):
    """Where a module stands: in another, under a name."""

    parent: nn.Module
    name: str
    path: str


def _replaced(
    model: _M,
    what: str,
    make: Callable[[nn.Module], _Made],
    verify: Any,
    precision: str | None,
    inplace: bool,
) -> _M:
    _check_module(model)
    if not isinstance(inplace, bool):
        raise TypeError(f"inplace: expected True or False, got {_checks.described(inplace)}")
    before = None if verify is None else _results(model, verify)
    changed: Any = model if inplace else copy.deepcopy(model)
    made, reason = make(changed)
    left = {"the model": reason} if reason else {}
    undo: list[tuple[_Place, nn.Module]] = []
    if made is not None:
        changed = made
    else:
        left |= _replace_within(changed, make, undo)
    try:
        if before is not None:
            _compare(before, _results(changed, verify), _ALLOWED[precision])
    except Exception:
        for place, module in undo:
            place.parent._modules[place.name] = module
        raise
    if left:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in left.items())
        warnings.warn(f"{what} left {reasons}", stacklevel=3)
    result: _M = changed
    return result


def _replace_within(
    model: nn.Module, make: Callable[[nn.Module], _Made], undo: list[tuple[_Place, nn.Module]]
) -> dict[str, str]:
    """Replace what can be; return the reasons for what cannot, by path."""
    left: dict[str, str] = {}
    known: dict[int, _Made] = {}
    for place, module in list(_places(model)):
        if id(module) not in known:
            known[id(module)] = make(module)
        made, reason = known[id(module)]
        if reason:
            left.setdefault(place.path, reason)
        if made is not None:
            undo.append((place, module))
            place.parent._modules[place.name] = made
    return left


def _places(model: nn.Module) -> Iterator[tuple[_Place, nn.Module]]:
    """Give every module within a model with its place, once for each place."""
    for path, parent in model.named_modules():
        if isinstance(parent, torch.jit.ScriptModule):
            continue
        for name, module in parent._modules.items():
            if module is not None:
                yield _Place(parent, name, f"{path}.{name}".lstrip(".")), module


def _results(model: nn.Module, example: Any) -> list[Any]:
    """Run a model on an example, in eval mode, and return all tensors in what it gives."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            if isinstance(example, dict):
                results = model(**example)
            else:
                results = model(*(example if type(example) is tuple else (example,)))
    finally:
        for module, training in modes.items():
            module.training = training
    return torch.utils._pytree.tree_leaves(results)


def _compare(before: list[Any], after: list[Any], allowed: float) -> None:
    if len(before) != len(after):
        raise RuntimeError(f"verify: expected {len(before)} results, got {len(after)}")
    for number, (theirs, ours) in enumerate(zip(before, after, strict=True)):
        if isinstance(theirs, torch.Tensor) and theirs.is_floating_point():
            _compare_tensors(f"verify: result {number}", theirs, ours, allowed)


def _compare_tensors(what: str, theirs: Tensor, ours: Tensor, allowed: float) -> None:
    if theirs.shape != ours.shape:
        raise RuntimeError(f"{what}: expected shape {tuple(theirs.shape)}, got {tuple(ours.shape)}")
    if not theirs.numel():
        return
    scale = max(1.0, float(theirs.abs().max()))
    error = float((theirs.double() - ours.double()).abs().max())
    if not error <= allowed * scale:
        raise RuntimeError(f"{what}: expected a difference of at most {allowed * scale:.2g}, got {error:.2g}")


def _check_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {_checks.described(model)}")
