"""LSTM, GRU and RNN: equations, constructor arguments, and the engine's names for the cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gatedrnn import _storage
from gatedrnn._module import _rebuild
from gatedrnn._options import _COMMON_DEFAULTS, _LAYER_NORM_DEFAULTS, _Option
from gatedrnn._recurrent import _Recurrent

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    import numpy.typing as npt

    from gatedrnn._activations import Activations

    Array = npt.NDArray[np.floating[Any]]

__all__ = ["GRU", "LSTM", "RNN", "load"]


class LSTM(_Recurrent["tuple[Array, Array]", "tuple[Array | None, Array | None]"]):
    """Long short-term memory; constructor, parameters and results like ``torch.nn.LSTM``.

    With s the logistic function and * between vectors elementwise::

        i = s(W_ii x + b_ii + W_hi h + b_hi [+ w_ci * c])       input gate
        f = s(W_if x + b_if + W_hf h + b_hf [+ w_cf * c])       forget gate; coupled=True: f = 1 - i
        g = tanh(W_ig x + b_ig + W_hg h + b_hg)                 candidate
        c' = f * c + i * g
        o = s(W_io x + b_io + W_ho h + b_ho [+ w_co * c'])      output gate
        h' = o * tanh(c')                                       with proj_size: W_hr (o * tanh(c'))

    The rows of a weight are the gates i, f, g, o; coupled i, g, o. Sources: Hochreiter & Schmidhuber 1997;
    the forget gate: Gers, Schmidhuber & Cummins 2000; the peepholes in brackets: Gers & Schmidhuber 2000; the
    projection: Sak, Senior & Beaufays 2014; coupled gates: Greff et al. 2015, ONNX' ``input_forget``. The
    state is the pair (h, c).

    Args:
        input_size: Width of one time step of the input, I.
        hidden_size: Number of hidden units, H.
        num_layers: Layers, each fed with the output of the one below.
        bias: Whether to have bias parameters.
        batch_first: Whether x and the output are (B, T, ...) instead of (T, B, ...).
        dropout: Probability of dropout between layers; for training only, inference ignores it.
        bidirectional: Whether each layer also runs from the end to the start; the outputs stand side by side.
        proj_size: Width that h is projected to, below `hidden_size`; 0 for no projection.
        peephole: Whether the gates see the memory cell through ``weight_ci_l0``, ``weight_cf_l0``,
            ``weight_co_l0``.
        coupled: Whether the forget gate is 1 - i, which leaves three gates and no ``weight_cf_l0``.
        activations: Other functions than those above: by gate, of "i", "f", "g", "o", and "h" for the one of
            c'; or a list of three in ONNX' order, for i, f and o, for g, and for h. Each is a name,
            "sigmoid", "tanh", "relu", "hard_sigmoid" (min(max(alpha x + beta, 0), 1)), "leaky_relu" (alpha x
            below 0), "elu" (alpha (exp(x) - 1) below 0), "softsign", "softplus", "scaled_tanh"
            (alpha tanh(beta x)), "affine" (alpha x + beta) or "thresholded_relu" (0 up to alpha), or a tuple
            of one and its alpha, or alpha and beta, which are ONNX's by default. "hardsigmoid" is torch.nn's,
            relu6(x + 3) / 6, and "linear" the identity. See docs/activations.md.
        clip: Holds the gates' pre-activations within -clip..clip, as ONNX' ``clip``.
        cell_clip: Holds c' within -cell_clip..cell_clip, as TensorFlow's and TFLite's LSTM.
        layer_norm: "products" for LN(W_i x) + LN(W_h h) + b, each over all gates together, and LN(c') for c'
            in h', as in Ba, Kiros & Hinton 2016; "gates" for LN(a) + b, each gate by itself, where a is its
            sum without biases but with what peepholes add, as TFLite's LSTM. LN(a) is
            w * (a - mean) / sqrt(variance + eps), with the moments of a row's values and parameters
            ``weight_ln_ih_l0``, ``weight_ln_hh_l0`` (4 H), ``weight_ln_c_l0`` and ``bias_ln_c_l0`` (H), or
            ``weight_ln_l0`` (4 H). On the CPU only. See docs/layer-normalization.md.
        layer_norm_eps: What is added to variances. TFLite's is 1e-8.
        direction: "forward", or "reverse" for layers that run from the end to the start: each row from its
            last valid step on, with outputs at their own time, and the state after step 0 as the final one.
            With `bidirectional` only "forward".
        merge: How the outputs of both directions are joined in the last layer: "concat" for side by side,
            (T, B, 2 S), or "sum", "mul" or "mean" of the two, (T, B, S). Without `bidirectional` only
            "concat". Between layers they always stand side by side.
        learn_state: Whether the state that a row begins with where none is given is learnt: parameters
            ``h_0`` (L*D, S) and, for LSTM, ``c_0`` (L*D, H), zeros in a new module.
        dtype: float32 or float64, of parameters, states and, but for `precision`, all arithmetic.
        seed: Integer of at least 0 that decides the initial parameters, uniform in +-1/sqrt(H); None for new
            ones each time.
        device: Where calls compute, "cpu" or "cuda"; see `to`.
        precision: How matrix products of float32 are computed, None for float32; see `to`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a value outside its range, or the parameters would fit in no memory.
        RuntimeError: The device backend, a driver or a device is missing.
    """

    __slots__ = ()
    _defaults = (
        _COMMON_DEFAULTS
        | _LAYER_NORM_DEFAULTS
        | {"proj_size": 0, "peephole": False, "coupled": False, "cell_clip": None}
    )

    proj_size = _Option[int]("Width that h is projected to; 0: not projected.")
    peephole = _Option[bool]("Whether the gates see the memory cell.")
    coupled = _Option[bool]("Whether the forget gate is 1 - i.")
    cell_clip = _Option["float | None"]("Limit of c'; None: none.")
    layer_norm = _Option["str | None"]("What is normalised; None: nothing.")
    layer_norm_eps = _Option[float]("What layer normalisation adds to variances.")

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
        dtype: npt.DTypeLike = np.float32,
        seed: int | None = None,
        device: str = "cpu",
        precision: str | None = None,
    ) -> None:
        sizes = dict(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        flags = dict(bias=bias, batch_first=batch_first, bidirectional=bidirectional)
        rest = dict(dropout=dropout, proj_size=proj_size, peephole=peephole, coupled=coupled, dtype=dtype)
        functions = dict(activations=activations, clip=clip, cell_clip=cell_clip)
        norm = dict(layer_norm=layer_norm, layer_norm_eps=layer_norm_eps)
        more = dict(direction=direction, merge=merge, learn_state=learn_state)
        self._initialize(seed, device, precision, **sizes, **flags, **rest, **more, **functions, **norm)

    @staticmethod
    def _plain_cell_of(options: Mapping[str, Any]) -> str:
        coupled, peephole = options["coupled"], options["peephole"]
        return f"lstm{'_coupled' if coupled else ''}{'_peephole' if peephole else ''}"


class GRU(_Recurrent["Array", "Array"]):
    """Gated recurrent unit in both of its forms; constructor, parameters and results like ``torch.nn.GRU``.

    With s the logistic function and * between vectors elementwise::

        r = s(W_ir x + b_ir + W_hr h + b_hr)                    reset gate
        z = s(W_iz x + b_iz + W_hz h + b_hz)                    update gate
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))           candidate, reset_after=True
        n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)           candidate, reset_after=False
        h' = (1 - z) * n + z * h

    The rows of a weight are the gates r, z, n in both forms. Sources: `reset_after=False` is the unit of Cho
    et al. 2014 (there h' = z h + (1 - z) n as here); `reset_after=True` is the variant of cuDNN, which
    PyTorch and Keras took over. Parameters trained for one form are wrong in the other.

    The other arguments, and the errors raised, are those of `LSTM`.

    Args:
        reset_after: Whether the reset gate acts after the candidate's matrix product (True) or on h before it
            (False).
        activations: As for `LSTM`: by gate, of "r", "z", "n"; or a list of two, for r and z, and for n.
        layer_norm: "products" with `reset_after`: r and z, together, have LN of either product, and the
            candidate LN(W_in x) + b_in + r * (LN(W_hn h) + b_hn), as in the code of Ba, Kiros & Hinton 2016.
    """

    __slots__ = ()
    _defaults = _COMMON_DEFAULTS | _LAYER_NORM_DEFAULTS | {"reset_after": True}

    reset_after = _Option[bool]("Whether the reset gate acts after the candidate's matrix product.")
    layer_norm = _Option["str | None"]("What is normalised; None: nothing.")
    layer_norm_eps = _Option[float]("What layer normalisation adds to variances.")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        reset_after: bool = True,
        activations: Activations | None = None,
        clip: float | None = None,
        layer_norm: str | None = None,
        layer_norm_eps: float = 1e-5,
        direction: str = "forward",
        merge: str = "concat",
        learn_state: bool = False,
        dtype: npt.DTypeLike = np.float32,
        seed: int | None = None,
        device: str = "cpu",
        precision: str | None = None,
    ) -> None:
        sizes = dict(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        flags = dict(bias=bias, batch_first=batch_first, bidirectional=bidirectional)
        rest = dict(dropout=dropout, reset_after=reset_after, dtype=dtype)
        more = dict(direction=direction, merge=merge, learn_state=learn_state)
        functions = dict(activations=activations, clip=clip)
        norm = dict(layer_norm=layer_norm, layer_norm_eps=layer_norm_eps)
        self._initialize(seed, device, precision, **sizes, **flags, **rest, **more, **functions, **norm)

    @staticmethod
    def _plain_cell_of(options: Mapping[str, Any]) -> str:
        return "gru" if options["reset_after"] else "gru_reset_before"


class RNN(_Recurrent["Array", "Array"]):
    """The plain recurrent network of Elman 1990; constructor, parameters and results like ``torch.nn.RNN``.

    ::

        h' = tanh(W_ih x + b_ih + W_hh h + b_hh)                or relu instead of tanh

    The other arguments, and the errors raised, are those of `LSTM`.

    Args:
        nonlinearity: "tanh" or "relu".
        activations: As for `LSTM`: for "h" alone, or a list of one.
    """

    __slots__ = ()
    _defaults = _COMMON_DEFAULTS | {"nonlinearity": "tanh"}

    nonlinearity = _Option[str]('"tanh" or "relu".')

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
        *,
        activations: Activations | None = None,
        clip: float | None = None,
        direction: str = "forward",
        merge: str = "concat",
        learn_state: bool = False,
        dtype: npt.DTypeLike = np.float32,
        seed: int | None = None,
        device: str = "cpu",
        precision: str | None = None,
    ) -> None:
        sizes = dict(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        flags = dict(bias=bias, batch_first=batch_first, bidirectional=bidirectional)
        rest = dict(dropout=dropout, nonlinearity=nonlinearity, dtype=dtype)
        more = dict(direction=direction, merge=merge, learn_state=learn_state)
        functions = dict(activations=activations, clip=clip)
        self._initialize(seed, device, precision, **sizes, **flags, **rest, **more, **functions)

    @staticmethod
    def _plain_cell_of(options: Mapping[str, Any]) -> str:
        return f"rnn_{options['nonlinearity']}"


_CLASSES: dict[str, type[_Recurrent[Any, Any]]] = {cls.__name__: cls for cls in (LSTM, GRU, RNN)}


def load(path: str | os.PathLike[str]) -> LSTM | GRU | RNN:
    """Make the module that was saved to a file: same class, constructor arguments, precision and bits.

    Nothing in the file is executed, and nothing is allocated before its sizes were found to match.

    Args:
        path: A file written by `save` of a module.

    Raises:
        TypeError: `path` is not a path.
        FileNotFoundError: There is no such file. Other errors of reading are an OSError too.
        ValueError: The file is not one of gatedrnn, is damaged, or is of a later format version; the message
            names it.
    """
    module = _rebuild(*_storage.read(path, _CLASSES))
    assert isinstance(module, (LSTM, GRU, RNN))
    return module
