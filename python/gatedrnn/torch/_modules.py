"""LSTM, GRU and RNN for PyTorch: the constructors and calls that users see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from torch.fx import Proxy

import gatedrnn
from gatedrnn import _checks
from gatedrnn.torch._drop_in import _RNNBase, fx_node
from gatedrnn.torch._recurrent import steps_of

if TYPE_CHECKING:
    import torch
    from torch.nn.utils.rnn import PackedSequence

    from gatedrnn._activations import Activations
    from gatedrnn.torch._recurrent import Flags, Lengths

__all__ = ["GRU", "LSTM", "RNN"]

_NN_OPTIONS = ("num_layers", "batch_first", "dropout", "bidirectional")


class LSTM(_RNNBase, nn.LSTM):
    """``torch.nn.LSTM``, computed by this package's engine on the CPU.

    Constructor, parameters, state dictionary, call and results are torch.nn's; `gatedrnn.LSTM` has the
    equations. States and outputs share their memory with the engine, nothing is copied.

    Arguments that do not stand here are those of ``torch.nn.LSTM``.

    Args:
        dropout: Probability of dropout between layers in training mode, drawn from torch's generator.
        device: Where the parameters are made; a call needs them on the CPU.
        dtype: torch.float32 or torch.float64, or torch.bfloat16 or torch.float16, which are computed in
            float32 but for products (see `precision`); None for torch's default.
        peephole: Whether the gates see the memory cell through ``weight_ci_l0``, ``weight_cf_l0``,
            ``weight_co_l0``, which torch.nn has not.
        coupled: Whether the forget gate is 1 - i, which leaves the gates i, g, o; torch.nn has not.
        activations: Functions of gates, as for `gatedrnn.LSTM`; so are `clip`, `cell_clip`,
            `layer_norm` and `layer_norm_eps`. torch.nn has none of them.
        direction: "forward", or "reverse" for layers that only run from the end to the start, which torch.nn
            has not; see `gatedrnn.LSTM`.
        merge: How the outputs of both directions are joined in the last layer, "concat" as in torch.nn,
            "sum", "mul" or "mean"; see `gatedrnn.LSTM`.
        learn_state: Whether the initial state, where none is given, is the parameters ``h_0`` and, for LSTM,
            ``c_0``; see `gatedrnn.LSTM`.
        precision: How matrix products are computed, "bfloat16", "bfloat16x3" or "int8" (for inference only),
            see docs/precision.md. None for that of the dtype: float32 or float64; "bfloat16" for bfloat16
            and under ``torch.autocast("cpu", torch.bfloat16)``, whose results are bfloat16; "bfloat16x3" for
            float16.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a value outside its range, or the parameters would fit in no memory.
    """

    _numpy_class = gatedrnn.LSTM
    _nn_class = nn.LSTM
    _nn_options = (*_NN_OPTIONS, "proj_size")
    _own_options = ("proj_size", "peephole", "coupled", "cell_clip", "layer_norm", "layer_norm_eps")
    peephole: bool = False  # here and below: of pickles without it, too
    coupled: bool = False
    cell_clip: float | None = None
    layer_norm: str | None = None
    layer_norm_eps: float = 1e-5

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
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
        direction: str = "forward",
        merge: str = "concat",
        learn_state: bool = False,
        precision: str | None = None,
    ) -> None:
        sizes = dict(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        flags = dict(bias=bias, batch_first=batch_first, bidirectional=bidirectional)
        rest = dict(dropout=dropout, proj_size=proj_size, peephole=peephole, coupled=coupled)
        functions = dict(activations=activations, clip=clip, cell_clip=cell_clip)
        norm = dict(layer_norm=layer_norm, layer_norm_eps=layer_norm_eps)
        more = dict(direction=direction, merge=merge, learn_state=learn_state)
        super().__init__(device, dtype, precision, **sizes, **flags, **rest, **more, **functions, **norm)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Lengths | None = None,
        resets: Flags | None = None,
        mask: Flags | None = None,
        mask_output: Literal["zeros", "previous"] = _checks.ZEROS,
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        """Run over whole sequences, with D directions and h of size S: `proj_size` if set, else H.

        Args:
            input: (T, B, I), or (B, T, I) with `batch_first`, or (T, I) unbatched, in the parameters' dtype
                and of any strides; or a PackedSequence.
            hx: Initial state (h, c), of shapes (L*D, B, S) and (L*D, B, H), without B where the input is
                unbatched; None for zeros, or with `learn_state` the parameters.
            lengths: B integers in 0..T, in any order: how many steps of each row of a padded input are
                valid. Output past them is 0, and the final state is that of the last valid step.
            resets: Booleans laid out like a padded input, (T, B): where true, the row's state is zero, or
                with `learn_state` the learnt one, before that step, and no gradient crosses.
            mask: Booleans laid out like a padded input, (T, B): where false, the step is skipped and the
                state stays. As to both, see docs/masks-and-episodes.md.
            mask_output: The output of skipped steps: "zeros", or "previous" for that of the step before.

        Returns:
            The output, (T, B, D*S), or (T, B, S) where `merge` is not "concat", laid out like the input
            (packed for a packed one), and the final state.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: An argument has the wrong shape or value, or is not on the CPU.
        """
        if isinstance(input, Proxy):
            options = dict(lengths=lengths, resets=resets, mask=mask, mask_output=mask_output)
            return fx_node(self, input, hx, options)
        h = c = None
        if hx is not None:
            if not isinstance(hx, (tuple, list)) or len(hx) != 2 or hx[0] is None:
                raise TypeError(f"hx: expected a pair (h, c) of tensors, got {_checks.described(hx)}")
            h, c = hx
        steps = steps_of(lengths, mask, resets, mask_output)
        output, h_n, c_n = self._compute(input, h, c, steps)
        return output, (h_n, c_n)


class _SingleState(_RNNBase):
    """Modules whose state is h alone."""

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        resets: Flags | None = None,
        mask: Flags | None = None,
        mask_output: Literal["zeros", "previous"] = _checks.ZEROS,
    ) -> tuple[Any, Tensor]:
        """Run over whole sequences: as `LSTM.forward`, but for the state, which is h alone.

        Args:
            input: As in `LSTM.forward`.
            hx: Initial state, (L*D, B, H), without B where the input is unbatched; None as there.
            lengths: As in `LSTM.forward`.
            resets: As in `LSTM.forward`.
            mask: As in `LSTM.forward`.
            mask_output: As in `LSTM.forward`.

        Returns:
            The output, (T, B, D*H) or (T, B, H), laid out like the input (packed for a packed one), and the
            final state. Errors are those of `LSTM.forward`.
        """
        if isinstance(input, Proxy):
            options = dict(lengths=lengths, resets=resets, mask=mask, mask_output=mask_output)
            return fx_node(self, input, hx, options)
        steps = steps_of(lengths, mask, resets, mask_output)
        output, h_n = self._compute(input, hx, None, steps)
        return output, h_n


def _refuse_projections(proj_size: object) -> None:
    if proj_size != 0:
        raise ValueError(f"proj_size: expected 0 but for an LSTM, got {_checks.shortened(proj_size)}")


class GRU(_SingleState, nn.GRU):
    """``torch.nn.GRU``, computed by this package's engine on the CPU, in both forms of the unit.

    As `LSTM` is to ``torch.nn.LSTM``, with the same arguments but for this one, and the same errors;
    `gatedrnn.GRU` has the equations.

    Args:
        proj_size: 0; as in torch.nn, LSTM alone has projections.
        reset_after: Whether the reset gate acts after the candidate's matrix product, as in torch.nn, or on h
            before it (False), as in the paper of Cho et al. 2014.
    """

    _numpy_class = gatedrnn.GRU
    _nn_class = nn.GRU
    _nn_options = _NN_OPTIONS
    _own_options = ("reset_after", "layer_norm", "layer_norm_eps")
    reset_after: bool = True
    layer_norm: str | None = None
    layer_norm_eps: float = 1e-5

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        proj_size: int = 0,
        reset_after: bool = True,
        activations: Activations | None = None,
        clip: float | None = None,
        layer_norm: str | None = None,
        layer_norm_eps: float = 1e-5,
        direction: str = "forward",
        merge: str = "concat",
        learn_state: bool = False,
        precision: str | None = None,
    ) -> None:
        _refuse_projections(proj_size)
        sizes = dict(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        flags = dict(bias=bias, batch_first=batch_first, bidirectional=bidirectional)
        rest = dict(dropout=dropout, reset_after=reset_after)
        more = dict(direction=direction, merge=merge, learn_state=learn_state)
        functions = dict(activations=activations, clip=clip)
        norm = dict(layer_norm=layer_norm, layer_norm_eps=layer_norm_eps)
        super().__init__(device, dtype, precision, **sizes, **flags, **rest, **more, **functions, **norm)


class RNN(_SingleState, nn.RNN):
    """``torch.nn.RNN``, computed by this package's engine on the CPU.

    As `LSTM` is to ``torch.nn.LSTM``, with the same arguments but for this one, and the same errors;
    `gatedrnn.RNN` has the equations.

    Args:
        nonlinearity: "tanh" or "relu".
        proj_size: 0; as in torch.nn, LSTM alone has projections.
    """

    _numpy_class = gatedrnn.RNN
    _nn_class = nn.RNN
    _nn_options = (*_NN_OPTIONS, "nonlinearity")
    _own_options = ("nonlinearity",)
    nonlinearity: str = "tanh"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        proj_size: int = 0,
        activations: Activations | None = None,
        clip: float | None = None,
        direction: str = "forward",
        merge: str = "concat",
        learn_state: bool = False,
        precision: str | None = None,
    ) -> None:
        _refuse_projections(proj_size)
        sizes = dict(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        flags = dict(bias=bias, batch_first=batch_first, bidirectional=bidirectional)
        rest = dict(dropout=dropout, nonlinearity=nonlinearity)
        more = dict(direction=direction, merge=merge, learn_state=learn_state)
        functions = dict(activations=activations, clip=clip)
        super().__init__(device, dtype, precision, **sizes, **flags, **rest, **more, **functions)
