"""What an optimiser and a checkpoint take for a module, and several modules as one: `Modules`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

import gatedrnn
from gatedrnn import _checks
from gatedrnn._parameters import IncompatibleKeys, refuse_incompatible
from gatedrnn.train import _arguments

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.floating[Any]]

_T = TypeVar("_T")

__all__ = ["Module", "Modules"]


class Module(Protocol):
    """What an optimiser and a checkpoint need of a module: `LSTM`, `GRU`, `RNN`, the layers, `Modules`."""

    def parameters(self) -> dict[str, Array]:
        """Hand out the module's own arrays by name."""
        ...

    def state_dict(self) -> dict[str, Array]:
        """Copy the parameters."""
        ...

    def load_state_dict(self, d: Mapping[str, object], strict: bool = True) -> IncompatibleKeys:
        """Copy parameters in."""
        ...


def generators_of(module: Module) -> dict[str, np.random.Generator]:
    """Return what a module draws from in training, by name: that of `dropout` in LSTM, GRU and RNN."""
    ours = (Modules, gatedrnn.LSTM, gatedrnn.GRU, gatedrnn.RNN)
    return module._generators() if isinstance(module, ours) else {}


class Modules:
    """Several modules under names, as one for an optimiser and a checkpoint.

    ``Modules(rnn=gr.GRU(8, 16), head=train.Linear(16, 1))`` has the modules as attributes, and the parameters
    ``rnn.weight_ih_l0``, ..., ``head.weight``, ``head.bias``. A `Modules` can be one of the modules.

    Args:
        **modules: Modules by name, each only once.

    Raises:
        TypeError: A value has no ``parameters()``, ``state_dict()`` and ``load_state_dict()``.
        ValueError: A name is one of this class's own or has a dot, a module comes twice, or there is none.
    """

    __slots__ = ("_modules",)

    def __init__(self, **modules: Module) -> None:
        if not modules:
            raise ValueError("modules: expected at least one, got none")
        for name, module in modules.items():
            if name.startswith("_") or "." in name or hasattr(self, name):
                raise ValueError(
                    f"modules: expected names without a dot, an underscore in front or a meaning of their "
                    f"own, got {_checks.shortened(name)}"
                )
            _arguments.module(name, module)
        if len({id(module) for module in modules.values()}) < len(modules):
            raise ValueError(f"modules: expected distinct ones, got one twice among {list(modules)}")
        self._modules: dict[str, Module] = dict(modules)

    def parameters(self) -> dict[str, Array]:
        """Hand out the modules' own arrays, by the module's name, a dot, and the parameter's name."""
        return _joined({name: module.parameters() for name, module in self._modules.items()})

    def state_dict(self) -> dict[str, Array]:
        """Copy the parameters, by the same names."""
        return _joined({name: module.state_dict() for name, module in self._modules.items()})

    def load_state_dict(self, d: Mapping[str, object], strict: bool = True) -> IncompatibleKeys:
        """Copy parameters in; on an error all modules are as they were.

        Arguments, result and errors are those of `LSTM.load_state_dict`.
        """
        own = self.parameters()
        missing = [name for name in own if name not in _arguments.mapping("d", d)]
        keys = IncompatibleKeys(missing, [name for name in d if name not in own])
        refuse_incompatible(self, keys, strict)
        before = self.state_dict()
        try:
            self._load(d)
        except BaseException:
            self._load(before)
            raise
        return keys

    def gradients(self, **gradients: Mapping[str, Array]) -> dict[str, Array]:
        """Put the gradients of all modules into one dictionary with the names of `parameters()`.

        Args:
            **gradients: By each module's name, what its ``backward`` returned for its parameters.

        Raises:
            TypeError: A value is not a mapping.
            ValueError: A module is missing, or a name is none of a module.
        """
        _arguments.names("gradients", gradients, self._modules)
        return _joined({name: _arguments.mapping(name, gradients[name]) for name in self._modules})

    def _generators(self) -> dict[str, np.random.Generator]:
        return _joined({name: generators_of(module) for name, module in self._modules.items()})

    def _load(self, d: Mapping[str, object]) -> None:
        for name, module in self._modules.items():
            prefix = f"{name}."
            own = {key[len(prefix) :]: value for key, value in d.items() if str(key).startswith(prefix)}
            module.load_state_dict(own, strict=False)

    def _has(self, name: str) -> bool:
        return not name.startswith("_") and hasattr(self, "_modules") and name in self._modules

    def __getattr__(self, name: str) -> Any:
        # Called only for what is no ordinary attribute.
        if self._has(name):
            return self._modules[name]
        raise _checks.no_attribute(self, name, "_modules")

    def __setattr__(self, name: str, value: object) -> None:
        if self._has(name):  # an attribute would hide the module from its user, and not from the optimiser
            raise AttributeError(f"{name}: fixed when {type(self).__name__} is made, cannot be assigned")
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(self._modules if hasattr(self, "_modules") else ())]

    def __repr__(self) -> str:
        if not hasattr(self, "_modules"):
            return _checks.half_made(self)
        return f"Modules({', '.join(f'{name}={module!r}' for name, module in self._modules.items())})"


def _joined(parts: Mapping[str, Mapping[str, _T]]) -> dict[str, _T]:
    return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
