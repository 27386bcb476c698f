"""LSTMCell, GRUCell and RNNCell for PyTorch: to the engine a step is a sequence of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.fx import Proxy

import gatedrnn
from gatedrnn import _checks
from gatedrnn.torch._drop_in import _DropIn, fx_node
from gatedrnn.torch._errors import ShapeError
from gatedrnn.torch._recurrent import EVERY_STEP

if TYPE_CHECKING:
    from torch import Tensor

    from gatedrnn._activations import Activations

__all__ = ["GRUCell", "LSTMCell", "RNNCell"]


class _Cell(_DropIn):
    """What all cells share."""

    _engine_suffix = "_l0"
    _nn_options: ClassVar[tuple[str, ...]] = ()
    num_layers = 1  # here and below: of torch.nn's pickles, which have none
    batch_first = False
    dropout = 0.0
    bidirectional = False

    def __init__(
        self,
        device: torch.device | str | int | None,
        dtype: torch.dtype | None,
        precision: str | None,
        **options: object,
    ) -> None:
        of_one_layer = dict(num_layers=1, batch_first=False, dropout=0.0, bidirectional=False)
        super().__init__(device, dtype, precision, **options, **of_one_layer)

    def _step(self, input: Tensor, h: Tensor | None, c: Tensor | None) -> tuple[Tensor, ...]:
        """Return h and, for LSTMCell, c after the step."""
        if self._gives_way():
            state = self._nn_class.forward(self, input, h if c is None else (h, c))
            return state if self._stack.has_c else (state,)
        features, axes = self.input_size, _axes("input", input)
        if len(axes) not in (1, 2) or axes[-1] != features:
            raise ShapeError(f"input: expected (B, {features}) or ({features},), got {axes}")
        expected = (*axes[:-1], self.hidden_size)
        before: list[Tensor | None] = []
        for name, given in (("hx: h", h), ("hx: c", c)) if self._stack.has_c else (("hx", h), ("hx", None)):
            if given is not None and _axes(name, given) != expected:
                raise ShapeError(f"{name}: expected {expected}, got {tuple(given.shape)}")
            before.append(None if given is None else given.unsqueeze(0))
        results = self._compute(input.unsqueeze(0), before[0], before[1], EVERY_STEP)
        return tuple([state.squeeze(0) for state in results[1:]])


def _axes(name: str, tensor: Any) -> tuple[int, ...]:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor, got {_checks.described(tensor)}")
    return tuple(tensor.shape)


class LSTMCell(_Cell, nn.LSTMCell):
    """``torch.nn.LSTMCell``, computed by this package's engine on the CPU.

    Constructor, parameters, state dictionary, call and results are torch.nn's; `gatedrnn.LSTM` has the
    equations. Arguments that do not stand here are those of ``torch.nn.LSTMCell``.

    Args:
        device: Where the parameters are made; a call needs them on the CPU.
        dtype: As for `LSTM`.
        peephole: Whether the gates see the memory cell through ``weight_ci``, ``weight_cf``, ``weight_co``.
        coupled: Whether the forget gate is 1 - i.
        activations: Functions of gates, as for `LSTM`; so are `clip`, `cell_clip`, `layer_norm`
            and `layer_norm_eps`.
        precision: As for `LSTM`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a value outside its range, or the parameters would fit in no memory.
    """

    _numpy_class = gatedrnn.LSTM
    _nn_class = nn.LSTMCell
    _own_options = ("peephole", "coupled", "cell_clip", "layer_norm", "layer_norm_eps")
    peephole: bool = False
    coupled: bool = False
    cell_clip: float | None = None
    layer_norm: str | None = None
    layer_norm_eps: float = 1e-5

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        peephole: bool = False,
        coupled: bool = False,
        activations: Activations | None = None,
        clip: float | None = None,
        cell_clip: float | None = None,
        layer_norm: str | None = None,
        layer_norm_eps: float = 1e-5,
        precision: str | None = None,
    ) -> None:
        sizes = dict(input_size=input_size, hidden_size=hidden_size)
        rest = dict(bias=bias, peephole=peephole, coupled=coupled)
        functions = dict(activations=activations, clip=clip, cell_clip=cell_clip)
        norm = dict(layer_norm=layer_norm, layer_norm_eps=layer_norm_eps)
        super().__init__(device, dtype, precision, **sizes, **rest, **functions, **norm)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Take one step.

        Args:
            input: (B, I) or (I,), in the parameters' dtype.
            hx: The state before, (h, c), each (B, H), without B where the input has none; None for zeros.

        Returns:
            The state after, (h, c).

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: An argument has the wrong shape, or is not on the CPU.
        """
        if isinstance(input, Proxy):
            return fx_node(self, input, hx)
        h = c = None
        if hx is not None:
            if not isinstance(hx, (tuple, list)) or len(hx) != 2 or hx[0] is None:
                raise TypeError(f"hx: expected a pair (h, c) of tensors, got {_checks.described(hx)}")
            h, c = hx
        h, c = self._step(input, h, c)
        return h, c


class _SingleState(_Cell):
    """Cells whose state is h alone."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Take one step: as `LSTMCell.forward`, but for the state, which is h alone.

        Args:
            input: As in `LSTMCell.forward`.
            hx: The state before, (B, H), without B where the input has none; None for zeros.

        Returns:
            The state after. Errors are those of `LSTMCell.forward`.
        """
        return fx_node(self, input, hx) if isinstance(input, Proxy) else self._step(input, hx, None)[0]


class GRUCell(_SingleState, nn.GRUCell):
    """``torch.nn.GRUCell``, computed by this package's engine on the CPU, in both forms of the unit.

    As `LSTMCell` is to ``torch.nn.LSTMCell``, with the same errors.

    Args:
        reset_after: Whether the reset gate acts after the candidate's matrix product, as in torch.nn, or on h
            before it (False).
    """

    _numpy_class = gatedrnn.GRU
    _nn_class = nn.GRUCell
    _own_options = ("reset_after", "layer_norm", "layer_norm_eps")
    reset_after: bool = True
    layer_norm: str | None = None
    layer_norm_eps: float = 1e-5

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        activations: Activations | None = None,
        clip: float | None = None,
        layer_norm: str | None = None,
        layer_norm_eps: float = 1e-5,
        precision: str | None = None,
    ) -> None:
        sizes = dict(input_size=input_size, hidden_size=hidden_size)
        rest = dict(bias=bias, reset_after=reset_after, activations=activations, clip=clip)
        norm = dict(layer_norm=layer_norm, layer_norm_eps=layer_norm_eps)
        super().__init__(device, dtype, precision, **sizes, **rest, **norm)


class RNNCell(_SingleState, nn.RNNCell):
    """``torch.nn.RNNCell``, computed by this package's engine on the CPU.

    As `LSTMCell` is to ``torch.nn.LSTMCell``, with the same errors.

    Args:
        nonlinearity: "tanh" or "relu".
    """

    _numpy_class = gatedrnn.RNN
    _nn_class = nn.RNNCell
    _nn_options = ("nonlinearity",)
    _own_options = ("nonlinearity",)
    nonlinearity: str = "tanh"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        activations: Activations | None = None,
        clip: float | None = None,
        precision: str | None = None,
    ) -> None:
        sizes = dict(input_size=input_size, hidden_size=hidden_size)
        rest = dict(bias=bias, nonlinearity=nonlinearity, activations=activations, clip=clip)
        super().__init__(device, dtype, precision, **sizes, **rest)
