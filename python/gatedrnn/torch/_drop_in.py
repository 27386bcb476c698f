"""What makes our modules those of ``torch.nn`` by type: its private names, and its module in place of ours.

Programs look into torch.nn's modules in more ways than its documentation names, and what writes programs
down (torch.fx, TorchScript, the older ONNX exporter) knows torch.nn's alone.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gatedrnn._checks import ZEROS
from gatedrnn._parameters import INITIAL_STATE
from gatedrnn.torch._recurrent import EVERY_STEP, _Recurrent, _tracing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch.fx import Proxy
    from torch.nn.utils.rnn import PackedSequence

    from gatedrnn.torch._recurrent import _Steps

# Whether torch.export is at work. (A torch without this name exports to ONNX by `restore` alone.)
_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


class _DropIn(_Recurrent):
    """A layer or cell that gives way to torch.nn's where only that is understood."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "qconfig":  # torch.ao.quantization knows modules by their very class
            warnings.warn(
                "torch.ao.quantization leaves gatedrnn.torch's modules as they are: make them with "
                "precision='int8', or call gatedrnn.torch.restore first",
                stacklevel=2,
            )
        nn.Module.__setattr__(self, name, value)

    def __prepare_scriptable__(self) -> nn.Module:
        """Return torch.nn's module with the same parameters, for ``torch.jit.script``."""
        if option := self._beyond_nn():
            raise NotImplementedError(
                f"gatedrnn.torch: TorchScript has no {type(self).__name__} with {option}"
            )
        return nn_module(self)

    def _gives_way(self, steps: _Steps = EVERY_STEP) -> bool:
        """Tell whether torch.nn is to compute this call: where it is written down with torch's operators."""
        if not (_tracing() or (_exporting() and torch.onnx.is_in_onnx_export())):
            return False
        option = self._beyond_nn() or ("" if steps is EVERY_STEP else "lengths=, mask= or resets=")
        if option:
            warnings.warn(
                f"gatedrnn.torch: torch.nn has no {option}, so what is written can be loaded only where "
                "gatedrnn.torch is imported",
                category=cast(Any, torch.jit).TracerWarning,
                stacklevel=5,
            )
        return not option


class _RNNBase(_DropIn, nn.RNNBase):
    """What layers have of ``torch.nn.RNNBase``: lists of parameters, made when asked for."""

    def _compute(
        self, x: Tensor | PackedSequence, h: Tensor | None, c: Tensor | None, steps: _Steps
    ) -> tuple[Any, ...]:
        if self._gives_way(steps):
            output, state = self._nn_class.forward(self, x, h if c is None else (h, c))
            return (output, *state) if self._stack.has_c else (output, state)
        return super()._compute(x, h, c, steps)

    @property
    def mode(self) -> str:  # type: ignore[override]
        """Torch's word for the cell: LSTM, GRU, RNN_TANH or RNN_RELU."""
        name = self._nn_class.__name__
        return f"RNN_{cast(Any, self).nonlinearity.upper()}" if name == "RNN" else name

    @property
    def _flat_weights_names(self) -> list[str]:  # type: ignore[override]
        return [name for name in self._names if name not in INITIAL_STATE]

    @property
    def _flat_weights(self) -> list[Any]:
        return [getattr(self, name) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, tensors: list[Any]) -> None:
        for name, tensor in zip(self._flat_weights_names, tensors, strict=True):
            if getattr(self, name) is not tensor:
                self._parameters.pop(name, None)  # or a tensor that is no parameter would be refused
                setattr(self, name, tensor)

    @property
    def _all_weights(self) -> list[list[str]]:  # type: ignore[override]
        names = self._flat_weights_names
        count = len(names) // self._stack.tracks
        return [names[i : i + count] for i in range(0, len(names), count)]

    @property
    def all_weights(self) -> list[list[Any]]:
        """The parameters by layer and direction, as torch.nn's modules give them; without learnt states."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    def flatten_parameters(self) -> None:
        """Do nothing: there is no need to, but programs written for torch.nn's modules call it."""

    def _init_flat_weights(self) -> None:
        """Do nothing: there is no list to be made."""

    def _update_flat_weights(self) -> None:
        """Do nothing: there is no list to be kept up."""

    def _replicate_for_data_parallel(self) -> Any:
        return cast(Any, nn.Module)._replicate_for_data_parallel(self)


def fx_node(module: nn.Module, input: Proxy, hx: Any, options: Mapping[str, Any] = {}) -> Any:
    """Make a call of a module one node of a graph by torch.fx, as that does for torch.nn's."""
    tracer = cast(Any, input.tracer)
    given = {name: value for name, value in options.items() if value is not None and value is not ZEROS}
    arguments = (input,) if hx is None else (input, hx)
    return tracer.create_proxy("call_module", tracer.path_of_module(module), arguments, given)


def nn_module(module: Any) -> nn.Module:
    """Make torch.nn's module of one of ours that has no options beyond it, with the same parameters."""
    return with_all_of(module, module._nn_class, next(module.parameters()).dtype, module._nn_options, {})


def with_all_of(
    source: Any, cls: Any, dtype: torch.dtype, shared_options: Iterable[str], own_options: dict[str, Any]
) -> nn.Module:
    """Make a module of a class with another's sizes, options, parameters, hooks and mode.

    Args:
        source: The other one.
        cls: The class.
        dtype: That of the parameters.
        shared_options: Names of arguments that are attributes of `source`.
        own_options: Further arguments.
    """
    options = {name: getattr(source, name) for name in shared_options} | own_options
    sizes = source.input_size, source.hidden_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of dropout, which has been said when the source was made
        made: nn.Module = cls(*sizes, bias=bool(source.bias), device="meta", dtype=dtype, **options)
    for name, parameter in source.named_parameters(recurse=False):
        setattr(made, name, parameter)
    if parametrize.is_parametrized(source):
        _take_parametrizations(source, made)
    for name, value in vars(source).items():
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_always_called")):
            setattr(made, name, value)
    return made.train(source.training)


def _take_parametrizations(source: Any, made: nn.Module) -> None:
    """Let weights be made of parameters as they are in another module, by the very same modules."""
    cast(Any, parametrize)._inject_new_class(made)
    made.parametrizations = source.parametrizations
    for name in source.parametrizations:
        del made._parameters[name]
        cast(Any, parametrize)._inject_property(made, name)
