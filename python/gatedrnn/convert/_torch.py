"""Modules of torch.nn as ours, and ours as torch.nn's."""

from __future__ import annotations

import copy
import sys
import warnings
from typing import Any

import numpy as np

from gatedrnn import _checks
from gatedrnn._cells import GRUCell, LSTMCell, RNNCell
from gatedrnn._modules import GRU, LSTM, RNN
from gatedrnn._optional import required
from gatedrnn.convert import _verify

_Module = Any  # one of ours
_CLASSES: dict[str, Any] = {cls.__name__: cls for cls in (LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell)}

# What torch.nn's modules compute, of what ours can.
_TORCHS = {
    "peephole": False,
    "coupled": False,
    "reset_after": True,
    "activations": None,
    "clip": None,
    "cell_clip": None,
    "layer_norm": None,
    "direction": "forward",
    "merge": "concat",
    "learn_state": False,
}
# Arguments of torch.nn's constructors beside input_size, hidden_size and bias.
_ARGUMENTS = ("num_layers", "batch_first", "dropout", "bidirectional", "proj_size", "nonlinearity")


def from_torch(module: object) -> Any:
    """Make one of our modules of a ``torch.nn`` module, or of one of `gatedrnn.torch`, with its parameters.

    Args:
        module: A ``torch.nn.LSTM``, ``GRU``, ``RNN``, ``LSTMCell``, ``GRUCell`` or ``RNNCell``, or one of the
            same names of `gatedrnn.torch`, on any device. Parametrised ones
            (``torch.nn.utils.parametrizations``) give the weights that they compute.

    Returns:
        The module of ours of the same name and arguments. Its parameters are copies, in float64 where the
        source's are, else in float32, which holds float16 and bfloat16 exactly.

    Raises:
        TypeError: It is no such module; a subclass, whose equations nobody knows, is none.
        ValueError: A parameter is not finite.
        RuntimeError: The new module does not compute what the source does, which would be our mistake.
    """
    name, own = _source_class(module)
    cls = _CLASSES[name]
    source: Any = module
    options = {"input_size": source.input_size, "hidden_size": source.hidden_size, "bias": bool(source.bias)}
    wanted = cls._defaults.keys() - {"bias", "dtype"} if own else cls._defaults.keys() & set(_ARGUMENTS)
    options |= {argument: getattr(source, argument) for argument in wanted}
    weight = source.weight_ih if "Cell" in name else source.weight_ih_l0
    options["dtype"] = np.float64 if str(weight.dtype) == "torch.float64" else np.float32
    made = cls(**options)
    values = {key: _checks.foreign_array(key, getattr(source, key)) for key in made.state_dict()}
    check_finite(values)
    made.load_state_dict(values)
    if all(made._options.get(option, usual) == usual for option, usual in _TORCHS.items()):
        verify_torch("module", made, name, values)
    return made


def verify_torch(what: str, made: _Module, name: str, values: dict[str, Any]) -> None:
    """Compare a module, or cell, with torch.nn's equations on parameters by torch.nn's names."""
    read = _verify.torch_cell_source if "Cell" in name else _verify.torch_source
    nonlinearity = made._options.get("nonlinearity", "tanh")
    _verify.verify(what, made, read(name.removesuffix("Cell"), values, nonlinearity))


def check_finite(values: dict[str, Any], where: str = "") -> None:
    """Refuse parameters that are not finite: nothing could be compared, and nobody wants them."""
    for name, value in values.items():
        if not np.isfinite(value).all():
            raise ValueError(f"{where}{name}: expected finite numbers, got some that are not")


def _source_class(module: object) -> tuple[str, bool]:
    """Return the class's name, and whether it is of `gatedrnn.torch`."""
    cls = type(module)
    torch = sys.modules.get("torch")  # whoever has such a module has imported it
    if torch is not None and isinstance(module, torch.nn.Module):
        parametrized = torch.nn.utils.parametrize.is_parametrized(module)
        cls = cls.__bases__[0] if parametrized else cls
        if getattr(torch.nn, cls.__name__, None) is cls and cls.__name__ in _CLASSES:
            return cls.__name__, False
        ours = sys.modules.get("gatedrnn.torch")
        if ours is not None and getattr(ours, cls.__name__, None) is cls and cls.__name__ in _CLASSES:
            return cls.__name__, True
    raise TypeError(
        f"module: expected a torch.nn.LSTM, GRU, RNN or one of their cells, got {_checks.described(module)}"
    )


def to_torch(module: _Module) -> Any:
    """Make a ``torch.nn`` module of one of ours, with its parameters.

    Args:
        module: An `LSTM`, `GRU`, `RNN`, or one of their cells.

    Returns:
        The ``torch.nn`` module of the same name and arguments, on the CPU, its parameters copies.

    Raises:
        TypeError: It is no such module.
        ValueError: It has an option that ``torch.nn`` has not; `gatedrnn.torch` has it.
        ImportError: PyTorch is not installed.
        RuntimeError: The new module does not compute what the source does, which would be our mistake.
    """
    if type(module) not in _CLASSES.values():
        expected = "an LSTM, GRU, RNN or one of their cells of gatedrnn"
        raise TypeError(f"module: expected {expected}, got {_checks.described(module)}")
    name = type(module).__name__
    for option, usual in _TORCHS.items():
        value = module._options.get(option, usual)
        if value != usual:
            raise ValueError(
                f"module: expected what torch.nn.{name} can compute, got {option}={value!r}; "
                f"gatedrnn.torch.{name} has that"
            )
    torch = required("torch", "to_torch")
    arguments = {key: module._options[key] for key in _ARGUMENTS if key in module._options}
    dtype = getattr(torch, module.dtype.name)
    sizes = (module.input_size, module.hidden_size)
    made = getattr(torch.nn, name)(*sizes, bias=module.bias, dtype=dtype, **arguments)
    made.load_state_dict({key: torch.from_numpy(value) for key, value in module.state_dict().items()})
    twin = copy.deepcopy(made).double().eval()
    twin.batch_first = False

    def output(x: Any) -> Any:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it computes more slowly
            result = twin(torch.from_numpy(x))
        return (result[0] if isinstance(result, tuple) else result).numpy()

    _verify.verify("module", module, output)
    return made
