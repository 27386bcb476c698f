"""The modules: arguments, parameters and the forms of input; the computing is in `_ops`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

import gatedrnn
from gatedrnn import _checks
from gatedrnn._cell_options import engine_options
from gatedrnn._merge import merged
from gatedrnn._options import checked_precision
from gatedrnn._parameters import INITIAL_STATE, fixed_start
from gatedrnn.torch import _ops
from gatedrnn.torch._cache import DTYPE_NAMES, DTYPES, LOW_PRECISIONS, NetworkCache, Stack, shapes_of

if TYPE_CHECKING:
    import numpy.typing as npt
    from typing_extensions import Self

    from gatedrnn._activations import Activations

    Lengths: TypeAlias = Tensor | npt.NDArray[np.integer[Any]] | Sequence[int]
    Flags: TypeAlias = Tensor | npt.NDArray[np.bool_] | Sequence[bool] | Sequence[Sequence[bool]]

__all__ = ["GRU", "LSTM", "RNN"]

# What tells whether something watches torch's operators. A torch without these names is always asked to tell.
_dispatch_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: True)
_tracing = getattr(torch._C, "_get_tracing_state", lambda: True)
# Whether a transform of torch.func is at work. (A torch without this name refuses on its own.)
_transforming = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)

# Arguments of all modules, in the order in which they are written.
_COMMON_OPTIONS = (
    "num_layers",
    "bias",
    "batch_first",
    "dropout",
    "bidirectional",
    "activations",
    "clip",
    "direction",
    "merge",
    "learn_state",
)


class _Steps(NamedTuple):
    """What a call says of its steps: how many are valid, which are skipped, and where the state is zero."""

    lengths: Lengths | None = None
    mask: Flags | None = None
    resets: Flags | None = None
    repeats: bool = False

    def checked(self, x: Tensor) -> _Steps:
        """Check what the engine cannot: it checks the numbers."""
        if self is EVERY_STEP:
            return self
        if self.lengths is not None and x.dim() == 2:
            described = _checks.described(self.lengths)
            raise ValueError(f"lengths: expected None for an unbatched input, got {described}")
        for name, value in zip(self._fields, self[:3], strict=False):
            if isinstance(value, Tensor) and value.device.type not in ("cpu", "meta"):
                raise ValueError(f"{name}: expected a tensor on the CPU, got one on {value.device}")
        return self

    def of_packed(self, row_lengths: Tensor) -> _Steps:
        """Return those of a PackedSequence, which has the lengths, and no place for the rest."""
        for name, value in zip(self._fields, self[:3], strict=False):
            if value is not None:
                why = ", which has its own" if name == "lengths" else ""
                raise ValueError(f"{name}: expected None with a PackedSequence{why}")
        return _Steps(row_lengths)

    def tensors(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, bool]:
        lengths, mask, resets = [None if s is None else torch.as_tensor(s) for s in self[:3]]
        return lengths, mask, resets, self.repeats

    def arrays(self) -> tuple[Any, Any, Any, bool]:
        lengths, mask, resets = [s.numpy() if isinstance(s, Tensor) else s for s in self[:3]]
        return lengths, mask, resets, self.repeats


EVERY_STEP = _Steps()


def _steps(lengths: Lengths | None, mask: Flags | None, resets: Flags | None, mask_output: str) -> _Steps:
    repeats = mask_output is not _checks.ZEROS and _checks.repeats_output(mask_output)
    if lengths is None and mask is None and resets is None:
        return EVERY_STEP
    return _Steps(lengths, mask, resets, repeats)


class _Recurrent(nn.Module):
    """What all modules share."""

    _numpy_class: ClassVar[Any]  # checks the constructor's arguments
    _own_options: ClassVar[tuple[str, ...]] = ()  # those of the cell alone
    _engine_suffix: ClassVar[str] = ""  # what names of parameters have in the engine alone
    proj_size = 0
    precision: str | None = None  # these are those of pickles from before them, too
    direction: str = "forward"
    merge: str = "concat"
    learn_state: bool = False
    activations: dict[str, Any] | None = None
    clip: float | None = None

    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    h_0: Tensor  # these with `learn_state`
    c_0: Tensor

    def __init__(
        self,
        device: torch.device | str | int | None,
        dtype: torch.dtype | None,
        precision: str | None,
        **options: object,
    ) -> None:
        super().__init__()
        dtype = dtype or torch.get_default_dtype()
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected {DTYPE_NAMES}, got {dtype}")
        self.precision = checked_precision("cpu", precision, DTYPES[dtype])
        checked = self._numpy_class._checked(options)
        for name, value in checked.items():
            setattr(self, name, value)
        _checks.warn_of_dropout(self.dropout, self.num_layers)
        functions = engine_options(checked, self._numpy_class._plain_cell_of(checked))
        self._stack = Stack(
            self._numpy_class._cell_of(checked),
            self.num_layers,
            self.bidirectional,
            self.bias,
            functions=json.dumps(functions),
            reverse=self.direction == "reverse",
            learn_state=self.learn_state,
        )
        shapes = shapes_of(self._stack, self.input_size, self.hidden_size, self._state_size)
        self._names = tuple([name.removesuffix(self._engine_suffix) for name in shapes])
        for name, shape in zip(self._names, shapes.values(), strict=True):
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self._cache = NetworkCache()
        self.reset_parameters()

    @property
    def _state_size(self) -> int:
        return self.proj_size or self.hidden_size

    def reset_parameters(self) -> None:
        """Draw all parameters again, uniform in +-1/sqrt(H), as torch.nn would with the same seed.

        Those of `learn_state` become zeros, weights of `layer_norm` ones and its further bias zeros.
        """
        bound = self.hidden_size**-0.5
        for name, parameter in self.named_parameters():
            start = fixed_start(name)
            if start is None:
                nn.init.uniform_(parameter, -bound, bound)
            else:
                nn.init.constant_(parameter, start)

    def flatten_parameters(self) -> None:
        """Do nothing: there is no need to, but programs written for torch.nn's modules call it."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._cache.forget()  # or it would keep the memory of what `to()` leaves behind
        cast(Any, super())._apply(fn, recurse)
        return self

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters by layer and direction, as torch.nn's modules give them; without learnt states."""
        named = zip(self._names, self._weights(), strict=True)
        weights = [weight for name, weight in named if name not in INITIAL_STATE]
        count = len(weights) // self._stack.tracks
        return [weights[i : i + count] for i in range(0, len(weights), count)]

    def extra_repr(self) -> str:
        """Write the arguments that are not torch.nn's defaults."""
        parts = [f"{self.input_size}, {self.hidden_size}"]
        defaults = self._numpy_class._defaults
        for name in (*_COMMON_OPTIONS, *self._own_options):
            value = getattr(self, name)
            if value != defaults[name]:
                parts.append(f"{name}={value!r}")
        if self.precision is not None:
            parts.append(f"precision={self.precision!r}")
        return ", ".join(parts)

    # ---- a call ----

    def _weights(self) -> tuple[Tensor, ...]:
        """Return the parameters in order, also where something put other tensors in their place."""
        parameters = self._parameters
        if tuple(parameters) == self._names:
            return cast("tuple[Tensor, ...]", tuple(parameters.values()))
        return tuple([getattr(self, name) for name in self._names])

    def _compute(
        self, x: Tensor | PackedSequence, h: Tensor | None, c: Tensor | None, steps: _Steps
    ) -> tuple[Any, ...]:
        """Return output, h_n and, for LSTM, c_n, for any form of input."""
        weights = self._weights()
        if isinstance(x, PackedSequence):
            return self._compute_packed(x, h, c, steps, weights)
        x, h, c = _cast(x, h, c, weights[0].dtype)
        self._check_input(x, weights[0].dtype, packed=False)
        if h is not None:
            self._check_state(h, c, _ops.batch_of(x, None, self.batch_first, False), x.dtype)
        return self._dispatch_cast(x, h, c, steps.checked(x), False, weights)

    def _compute_packed(
        self,
        packed: PackedSequence,
        h: Tensor | None,
        c: Tensor | None,
        steps: _Steps,
        weights: tuple[Tensor, ...],
    ) -> tuple[Any, ...]:
        x, batch_sizes, order, inverse = packed
        batch = int(batch_sizes[0]) if order is None else order.shape[0]
        x, h, c = _cast(x, h, c, weights[0].dtype)
        self._check_input(x, weights[0].dtype, packed=True)
        if h is not None:
            self._check_state(h, c, (batch,), x.dtype)
        steps = steps.of_packed((batch_sizes.unsqueeze(1) > torch.arange(batch)).sum(0))
        h, c = _reordered(h, order), _reordered(c, order)
        results = self._dispatch_cast(x, h, c, steps, True, weights)
        output = PackedSequence(results[0], batch_sizes, order, inverse)
        return output, *[_reordered(state, inverse) for state in results[1:]]

    def _dispatch_cast(
        self,
        x: Tensor,
        h: Tensor | None,
        c: Tensor | None,
        steps: _Steps,
        packed: bool,
        weights: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        """Compute in what the engine has: float32 where tensors are of less, or are to be.

        The results are of the parameters' dtype, or where autocast's is bfloat16 and theirs no more than
        float32, of that.
        """
        dtype = weights[0].dtype
        cast_to = torch.bfloat16 if dtype != torch.float64 and _autocasts_to_bfloat16() else dtype
        precision = self.precision
        if precision is None:
            precision = LOW_PRECISIONS.get(cast_to)
        elif dtype == torch.float64:
            raise ValueError(f"precision: expected None for {dtype}, got {precision!r}")
        stack = self._stack if precision is None else self._stack._replace(precision=precision)
        if dtype in LOW_PRECISIONS:
            x, h, c = _converted(x, h, c, torch.float32)
        output, *states = self._dispatch(x, h, c, steps, packed, weights, stack)
        results = (merged(self.merge, output), *states)
        return results if cast_to == x.dtype else tuple([result.to(cast_to) for result in results])

    def _dispatch(
        self,
        x: Tensor,
        h: Tensor | None,
        c: Tensor | None,
        steps: _Steps,
        packed: bool,
        weights: tuple[Tensor, ...],
        stack: Stack,
    ) -> tuple[Tensor, ...]:
        """Choose the way to the engine (see `_ops`), and whether to keep a tape."""
        batch_first = self.batch_first and not packed
        dropout = self.dropout if self.training and self.num_layers > 1 else 0.0
        seed = torch.randint(2**63 - 1, ()) if dropout else None
        keep = bool(dropout) or _wants_gradients(x, h, c, weights)
        if (
            torch.compiler.is_compiling()
            or type(x) is not Tensor
            or x.is_meta
            or _dispatch_modes()
            or _tracing()
        ):
            arguments = (x, h, c, weights, *steps.tensors(), batch_first, packed, *stack, self._cache.number)
            return self._through_operators(arguments, dropout, seed, keep)
        if _transforming():
            raise NotImplementedError(
                "gatedrnn.torch: the transforms of torch.func are not implemented; use torch.autograd, or "
                "torch.nn's module"
            )
        cached = self._cache.get(stack, weights, keep)
        dropout_seed = 0 if seed is None else int(seed)
        call = _ops.Call(cached, *steps.arrays(), batch_first, packed, dropout, dropout_seed)
        return _ops.forward(call, x, h, c, weights) if keep else _ops.run(call, x, h, c)

    def _through_operators(
        self, arguments: tuple[Any, ...], dropout: float, seed: Tensor | None, keep: bool
    ) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...]
        if keep:
            results = torch.ops.gatedrnn.forward(*arguments, dropout, seed)[:3]
        else:
            results = torch.ops.gatedrnn.run(*arguments)
        return results if self._stack.has_c else results[:2]

    # ---- checks ----

    def _check_input(self, x: Tensor, dtype: torch.dtype, *, packed: bool) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"input: expected a tensor or a PackedSequence, got {_checks.described(x)}")
        if dtype not in DTYPES:
            raise TypeError(f"{self._names[0]}: expected {DTYPE_NAMES}, got {dtype}")
        _check_tensor("input", x, dtype)
        axes = x.dim()
        if not (axes == 2 or (axes == 3 and not packed)) or x.size(-1) != self.input_size:
            features = str(self.input_size)
            batched = ("(B, T, " if self.batch_first else "(T, B, ") + features + ") or (T, " + features + ")"
            expected = f"packed rows (N, {features})" if packed else batched
            raise ValueError(f"input: expected {expected}, got {tuple(x.shape)}")

    def _check_state(self, h: Tensor, c: Tensor | None, batch: tuple[int, ...], dtype: torch.dtype) -> None:
        parts: list[tuple[str, Any, int]] = [("hx", h, self._state_size)]
        if self._stack.has_c:
            parts = [("hx: h", h, self._state_size), ("hx: c", c, self.hidden_size)]
        for name, tensor, width in parts:
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name}: expected a tensor, got {_checks.described(tensor)}")
            _check_tensor(name, tensor, dtype)
            expected = (self._stack.tracks, *batch, width)
            if tensor.shape != expected:
                raise ValueError(f"{name}: expected {expected}, got {tuple(tensor.shape)}")


def _check_tensor(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype} like the parameters, got {tensor.dtype}")
    if tensor.device.type not in ("cpu", "meta"):
        raise ValueError(f"{name}: expected a tensor on the CPU, got one on {tensor.device}")


def _cast(
    x: Tensor, h: Tensor | None, c: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Within `torch.autocast`, undo what it did to the results of other modules, and to our own."""
    return _converted(x, h, c, dtype) if torch.is_autocast_enabled("cpu") else (x, h, c)


def _converted(
    x: Tensor, h: Tensor | None, c: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return what are tensors in this dtype, and leave the rest to checks."""

    def convert(tensor: Any) -> Any:
        return tensor.to(dtype) if isinstance(tensor, Tensor) else tensor

    return convert(x), convert(h), convert(c)


def _autocasts_to_bfloat16() -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def _reordered(state: Tensor | None, order: Tensor | None) -> Any:
    return state if state is None or order is None else state.index_select(1, order)


def _wants_gradients(x: Tensor, h: Tensor | None, c: Tensor | None, weights: tuple[Tensor, ...]) -> bool:
    if getattr(forward_ad, "_current_level", -1) >= 0:
        return True  # forward-mode derivatives, which only what is recorded refuses
    return torch.is_grad_enabled() and (
        x.requires_grad
        or any([w.requires_grad for w in weights])  # of a list, since that is faster
        or (h is not None and h.requires_grad)
        or (c is not None and c.requires_grad)
    )


class LSTM(_Recurrent):
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
    _own_options = ("proj_size", "peephole", "coupled", "cell_clip", "layer_norm", "layer_norm_eps")
    peephole: bool
    coupled: bool = False  # of pickles from before it, too
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
        h = c = None
        if hx is not None:
            if not isinstance(hx, (tuple, list)) or len(hx) != 2 or hx[0] is None:
                raise TypeError(f"hx: expected a pair (h, c) of tensors, got {_checks.described(hx)}")
            h, c = hx
        steps = _steps(lengths, mask, resets, mask_output)
        output, h_n, c_n = self._compute(input, h, c, steps)
        return output, (h_n, c_n)


class _SingleState(_Recurrent):
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
        steps = _steps(lengths, mask, resets, mask_output)
        output, h_n = self._compute(input, hx, None, steps)
        return output, h_n


class GRU(_SingleState):
    """``torch.nn.GRU``, computed by this package's engine on the CPU, in both forms of the unit.

    As `LSTM` is to ``torch.nn.LSTM``, with the same arguments but for this one, and the same errors;
    `gatedrnn.GRU` has the equations.

    Args:
        reset_after: Whether the reset gate acts after the candidate's matrix product, as in torch.nn, or on h
            before it (False), as in the paper of Cho et al. 2014.
    """

    _numpy_class = gatedrnn.GRU
    _own_options = ("reset_after", "layer_norm", "layer_norm_eps")
    reset_after: bool
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
        sizes = dict(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        flags = dict(bias=bias, batch_first=batch_first, bidirectional=bidirectional)
        rest = dict(dropout=dropout, reset_after=reset_after)
        more = dict(direction=direction, merge=merge, learn_state=learn_state)
        functions = dict(activations=activations, clip=clip)
        norm = dict(layer_norm=layer_norm, layer_norm_eps=layer_norm_eps)
        super().__init__(device, dtype, precision, **sizes, **flags, **rest, **more, **functions, **norm)


class RNN(_SingleState):
    """``torch.nn.RNN``, computed by this package's engine on the CPU.

    As `LSTM` is to ``torch.nn.LSTM``, with the same arguments but for this one, and the same errors;
    `gatedrnn.RNN` has the equations.

    Args:
        nonlinearity: "tanh" or "relu".
    """

    _numpy_class = gatedrnn.RNN
    _own_options = ("nonlinearity",)
    nonlinearity: str

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
        activations: Activations | None = None,
        clip: float | None = None,
        direction: str = "forward",
        merge: str = "concat",
        learn_state: bool = False,
        precision: str | None = None,
    ) -> None:
        sizes = dict(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        flags = dict(bias=bias, batch_first=batch_first, bidirectional=bidirectional)
        rest = dict(dropout=dropout, nonlinearity=nonlinearity)
        more = dict(direction=direction, merge=merge, learn_state=learn_state)
        functions = dict(activations=activations, clip=clip)
        super().__init__(device, dtype, precision, **sizes, **flags, **rest, **more, **functions)
