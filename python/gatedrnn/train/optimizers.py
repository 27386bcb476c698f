"""SGD, Adam, AdamW and RMSprop with the arguments, defaults and equations of ``torch.optim``; clipping.

In the equations of the classes p is a parameter, g its gradient, k = 1, 2, ... the step, and all operations
are elementwise. Where `weight_decay` acts on the gradient (all but AdamW), g stands for g + weight_decay p.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from gatedrnn import _checks
from gatedrnn._parameters import Loan, ParameterStore, Part, store_of
from gatedrnn.train import _arguments

if TYPE_CHECKING:
    import numpy.typing as npt
    from typing_extensions import Self

    Array = npt.NDArray[np.floating[Any]]
    _Checks = Mapping[str, Callable[[str, Any], Any]]  # by hyper-parameter

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "RMSprop", "clip_grad_norm"]

# Parameters are updated in blocks of so many elements: an update goes over its data about ten times, and a
# block stays in the cache. Measured, Adam in float32: 1.3 times as fast as in one piece for half a million
# elements, 1.5 times for ten million. It also bounds the scratch memory.
_BLOCK = 1 << 15


class Optimizer:
    """What all optimisers share: parameters, buffers of the same shapes, blocks, state.

    **Copies** (`copy.deepcopy`, `pickle`): copied together with the module whose parameters it has, an
    optimiser trains the copy of the module. Copied alone it brings a copy of the module along, and trains
    that one. Arrays that are no module's are copied with it, and what else has the same arrays goes on to
    share them if it is copied in the same go. `copy.copy` makes a second optimiser of the same parameters,
    with buffers of its own.

    Args:
        parameters: Arrays by name that `step` changes in place, such as ``module.parameters()``. An optimiser
            of some of a module's parameters leaves the others as they are.
        lr: Learning rate, at least 0. It can be set between steps.
        weight_decay: At least 0.
        **options: The other hyper-parameters of the class.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument is outside its range, or an array is not contiguous or read-only.
    """

    _buffer_names: ClassVar[Sequence[str]]
    _option_checks: ClassVar[_Checks] = {
        "lr": _arguments.number,
        "weight_decay": _arguments.number,
    }

    weight_decay: float

    def __init__(
        self, parameters: Mapping[str, Array], lr: float, weight_decay: float, **options: object
    ) -> None:
        self._set(self._checked({"lr": lr, "weight_decay": weight_decay, **options}))
        # Views of our own of a module's parameters: we say when we write, others' writes are looked for.
        self._stores: dict[str, ParameterStore | None] = {}
        self._parameters: dict[str, Array] = {}
        for name, array in _accepted(parameters).items():
            store = self._stores[name] = store_of(array)
            self._parameters[name] = array if store is None else store.own(array)
        self._steps = 0
        self._buffers = {
            buffer: {name: np.zeros_like(array) for name, array in self._parameters.items()}
            for buffer in self._wanted_buffers()
        }
        self._scratch = self._new_scratch()

    def _new_scratch(self) -> dict[np.dtype[Any], Array]:
        dtypes = {array.dtype for array in self._parameters.values()}
        largest = max(array.size for array in self._parameters.values())
        return {dtype: np.empty((2, min(largest, _BLOCK)), dtype) for dtype in dtypes}

    def _wanted_buffers(self) -> Sequence[str]:
        return self._buffer_names

    @property
    def lr(self) -> float:
        """Learning rate of the steps to come."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = _arguments.number("lr", value)

    @property
    def steps(self) -> int:
        """How many steps were made."""
        return self._steps

    def hyper_parameters(self) -> dict[str, Any]:
        """Return what the steps to come are made with, by the names of the constructor's arguments."""
        return {name: getattr(self, name) for name in self._option_checks}

    def _checked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Check hyper-parameters, each alone and as far as they have to go together."""
        return {name: self._option_checks[name](name, value) for name, value in options.items()}

    def set_hyper_parameters(self, options: Mapping[str, Any]) -> None:
        """Change some of them for the steps to come; whether there are buffers cannot change.

        Args:
            options: By the names of the constructor's arguments.

        Raises:
            TypeError: A value has the wrong type.
            ValueError: A value is outside its range. In both cases nothing was changed.
        """
        self._set(self._checked({**self.hyper_parameters(), **options}))

    def _set(self, checked: Mapping[str, Any]) -> None:
        for name, value in checked.items():
            setattr(self, name, value)

    def step(self, grads: Mapping[str, Array]) -> None:
        """Change the parameters in place; leave the gradients as they are.

        A step is never left half-done by `numpy.seterr`: what it has to say of an overflow or an invalid
        value (as an infinite gradient makes) comes when the step is complete. Underflow is harmless and never
        reported.

        Args:
            grads: By name, the gradient of each parameter of this optimiser, in its shape and dtype. Others
                are passed over.

        Raises:
            TypeError: `grads` is not a mapping, or a gradient has another dtype than its parameter.
            ValueError: A gradient is missing or has another shape. In all cases nothing was changed.
        """
        accepted = self._accepted_gradients(grads)
        loans = self._loans()
        with _arguments.floating_point_errors_later(f"{type(self).__name__}.step"):
            self._steps += 1
            for name, parameter in self._parameters.items():
                flat = [_flat(parameter), _flat(accepted[name])]
                flat += [_flat(arrays[name]) for arrays in self._buffers.values()]
                scratch = self._scratch[parameter.dtype]
                for start in range(0, parameter.size, _BLOCK):
                    blocks = [array[start : start + _BLOCK] for array in flat]
                    self._update(*blocks, scratch=scratch[:, : blocks[0].size])
        del loans  # until here nobody trusts a pack, also after an error

    def _loans(self) -> list[Loan]:
        """As long as these live, no module trusts what it makes of its parameters."""
        stores = {id(store): store for store in self._stores.values() if store is not None}
        return [store.lend() for store in stores.values()]

    def _update(self, p: Array, g: Array, *buffers: Array, scratch: Array) -> None:
        """Make step `self._steps` for one block; write into anything but g."""
        raise NotImplementedError

    def _decay(self, p: Array, g: Array, work: Array) -> Array:
        """Return g with weight decay: in `work`, or g itself where there is none."""
        if self.weight_decay == 0:
            return g
        np.multiply(p, self.weight_decay, out=work)
        work += g
        return work

    def _accepted_gradients(self, grads: object) -> dict[str, Array]:
        """Return the gradients of this optimiser's parameters; errors are those of `step`."""
        given = _arguments.mapping("grads", grads)
        missing = [name for name in self._parameters if name not in given]
        if missing:
            raise ValueError(f"grads: expected one for each parameter, got none for {missing}")
        return {
            name: _arguments.shaped(f"grads[{name!r}]", given[name], parameter.shape, parameter.dtype)
            for name, parameter in self._parameters.items()
        }

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Copy what a run that goes on needs, as arrays that fit into a safetensors file.

        ``step`` (int64) of shape (), each hyper-parameter under its name (float64, flags bool) of shape (),
        `betas` of shape (2,), and for each buffer and parameter ``<buffer>.<parameter>`` in the parameter's
        shape and dtype. The buffers are named as in ``torch.optim``, but for ``variance``: see `RMSprop`.
        """
        state: dict[str, npt.NDArray[Any]] = {"step": np.array(self._steps, np.int64)}
        state |= {name: np.array(value) for name, value in self.hyper_parameters().items()}
        return state | {key: array.copy() for key, array in self._named_buffers().items()}

    def load_state_dict(self, d: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a state of the same optimiser of the same parameters, hyper-parameters included.

        As in ``torch.optim``, the state's hyper-parameters replace the constructor's, `lr` and all others
        alike. (`fit` resumes by another rule, which it says.) States of earlier versions have no more than
        ``step`` and ``lr`` beside the buffers: what is not in a state stays as it is.

        Args:
            d: What `state_dict` returned.

        Raises:
            TypeError: `d` is not a mapping, or an array has another dtype.
            ValueError: Names or a shape do not match, or a number is outside its range. In all cases nothing
                was changed.
        """
        given = self._upgraded(dict(_arguments.mapping("d", d)))
        own = self._named_buffers()
        absent = {name for name in self._option_checks if name not in given} - {"lr"}
        _arguments.names("d", given, {"step", *self._option_checks, *own} - absent)
        steps = _checks.integer("step", np.asarray(given["step"])[()], 0)
        options = {name: _plain(given[name]) for name in self._option_checks if name not in absent}
        checked = self._checked({**self.hyper_parameters(), **options})
        accepted = {
            key: _arguments.shaped(key, given[key], array.shape, array.dtype) for key, array in own.items()
        }
        self._set(checked)
        self._steps = steps
        for key, array in own.items():
            np.copyto(array, accepted[key])

    def _upgraded(self, d: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the state as this version would have it."""
        return d

    def _named_buffers(self) -> dict[str, Array]:
        return {
            f"{buffer}.{name}": array
            for buffer, arrays in self._buffers.items()
            for name, array in arrays.items()
        }

    def __getstate__(self) -> dict[str, Any]:
        parameters = {
            name: array if (store := self._stores[name]) is None else store.part(array)
            for name, array in self._parameters.items()
        }
        state = {**self.__dict__, "_parameters": parameters}
        del state["_stores"], state["_scratch"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        parts: dict[str, Any] = state["_parameters"]
        self._stores = {
            name: part.owner._store if isinstance(part, Part) else None for name, part in parts.items()
        }
        self._parameters = {
            name: part if (store := self._stores[name]) is None else store.found(part)
            for name, part in parts.items()
        }
        self._scratch = self._new_scratch()

    def __copy__(self) -> Self:
        made = type(self).__new__(type(self))
        state = self.__getstate__()
        made.__setstate__({**state, "_buffers": copy.deepcopy(state["_buffers"])})
        return made


class SGD(Optimizer):
    """Stochastic gradient descent, with or without momentum.

    ::

        b = g                                     first step
        b = momentum b + (1 - dampening) g        later steps
        p = p - lr b                              without momentum b is g
        p = p - lr (g + momentum b)               nesterov

    Sources: Sutskever, Martens, Dahl & Hinton 2013, with lr outside of b as in PyTorch.

    Args:
        parameters: Arrays by name, changed in place.
        lr: Learning rate, at least 0.
        momentum: At least 0.
        dampening: At least 0; 0 with `nesterov`.
        weight_decay: At least 0.
        nesterov: Whether to look ahead; needs momentum.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument is outside its range, or an array is not contiguous or read-only.
    """

    _buffer_names = ("momentum_buffer",)
    _option_checks: ClassVar[_Checks] = {
        **Optimizer._option_checks,
        "momentum": _arguments.number,
        "dampening": _arguments.number,
        "nesterov": _checks.flag,
    }

    momentum: float
    dampening: float
    nesterov: bool

    def __init__(
        self,
        parameters: Mapping[str, Array],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        options = {"momentum": momentum, "dampening": dampening, "nesterov": nesterov}
        super().__init__(parameters, lr, weight_decay, **options)

    def _checked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        checked = super()._checked(options)
        momentum, dampening = checked["momentum"], checked["dampening"]
        if checked["nesterov"] and (momentum == 0 or dampening != 0):
            raise ValueError(
                "nesterov: expected False without momentum or with dampening, got True with "
                f"momentum={momentum}, dampening={dampening}"
            )
        return checked

    def _wanted_buffers(self) -> Sequence[str]:
        return self._buffer_names if self.momentum > 0 else ()

    def _update(self, p: Array, g: Array, *buffers: Array, scratch: Array) -> None:
        decayed, work = scratch
        g = self._decay(p, g, decayed)
        if not buffers:
            np.multiply(g, self.lr, out=work)
        else:
            self._push(buffers[0], g, work)
            np.multiply(buffers[0], self.lr * (self.momentum if self.nesterov else 1), out=work)
            if self.nesterov:
                p -= work
                np.multiply(g, self.lr, out=work)
        p -= work

    def _push(self, momentum_buffer: Array, g: Array, work: Array) -> None:
        if self.steps == 1:
            np.copyto(momentum_buffer, g)
            return
        momentum_buffer *= self.momentum
        np.multiply(g, 1 - self.dampening, out=work)
        momentum_buffer += work


class Adam(Optimizer):
    """Steps scaled by running means of the gradient and of its square.

    ::

        m = m + (1 - beta1) (g - m)
        v = beta2 v + (1 - beta2) g^2
        p = p - lr / (1 - beta1^k) m / (sqrt(v) / sqrt(1 - beta2^k) + eps)

    Source: Kingma & Ba 2015, algorithm 1.

    Args:
        parameters: Arrays by name, changed in place.
        lr: Learning rate, at least 0.
        betas: beta1 and beta2, each at least 0 and below 1.
        eps: At least 0.
        weight_decay: At least 0; acts on the gradient (AdamW: on the parameter).

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument is outside its range, or an array is not contiguous or read-only.
    """

    _buffer_names = ("exp_avg", "exp_avg_sq")
    _option_checks: ClassVar[_Checks] = {
        **Optimizer._option_checks,
        "betas": _arguments.pair_of_fractions,
        "eps": _arguments.number,
    }

    betas: tuple[float, float]
    eps: float

    def __init__(
        self,
        parameters: Mapping[str, Array],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay, betas=betas, eps=eps)

    def _update(self, p: Array, g: Array, *buffers: Array, scratch: Array) -> None:
        (exp_avg, exp_avg_sq), (decayed, work) = buffers, scratch
        beta1, beta2 = self.betas
        g = self._decay(p, g, decayed)
        _move(exp_avg, g, 1 - beta1, work)
        _move_to_square(exp_avg_sq, g, beta2, work)
        np.sqrt(exp_avg_sq, out=work)
        work /= math.sqrt(1 - beta2**self.steps)
        work += self.eps
        _subtract_quotient(p, exp_avg, work, self.lr / (1 - beta1**self.steps))


class AdamW(Adam):
    """Adam whose weight decay does not go through the running means.

    First p = p - lr weight_decay p, then the step of Adam without weight decay.
    Source: Loshchilov & Hutter 2019, algorithm 2, with the decay scaled by lr as in PyTorch.

    Args:
        parameters: Arrays by name, changed in place.
        lr: Learning rate, at least 0.
        betas: beta1 and beta2, each at least 0 and below 1.
        eps: At least 0.
        weight_decay: At least 0.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument is outside its range, or an array is not contiguous or read-only.
    """

    def __init__(
        self,
        parameters: Mapping[str, Array],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay)

    def _decay(self, p: Array, g: Array, work: Array) -> Array:
        p *= 1 - self.lr * self.weight_decay
        return g


class RMSprop(Optimizer):
    """Steps scaled by a running mean of the gradient's square.

    ::

        v = alpha v + (1 - alpha) g^2
        d = g / (sqrt(v) + eps)
        p = p - lr d                                                without momentum
        b = momentum b + d;  p = p - lr b                           with

    and with `centered` v is the variance, for which a is the gradient's running mean::

        v = alpha (v + (1 - alpha) (g - a)^2)
        a = a + (1 - alpha) (g - a)

    Sources: Tieleman & Hinton 2012, lecture 6.5; centered: Graves 2013, equations 38 to 45, with eps outside
    of the root as in PyTorch. There the variance is the difference of the mean square and a^2, which is the
    same but for rounding; where gradients hardly change that makes it negative, and its root NaN.

    Args:
        parameters: Arrays by name, changed in place.
        lr: Learning rate, at least 0.
        alpha: At least 0 and below 1.
        eps: At least 0.
        weight_decay: At least 0.
        momentum: At least 0.
        centered: Whether to subtract the square of the gradient's running mean.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument is outside its range, or an array is not contiguous or read-only.
    """

    _buffer_names = ("square_avg", "variance", "momentum_buffer", "grad_avg")
    _option_checks: ClassVar[_Checks] = {
        **Optimizer._option_checks,
        "alpha": _arguments.fraction,
        "eps": _arguments.number,
        "momentum": _arguments.number,
        "centered": _checks.flag,
    }

    alpha: float
    eps: float
    momentum: float
    centered: bool

    def __init__(
        self,
        parameters: Mapping[str, Array],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        options = {"alpha": alpha, "eps": eps, "momentum": momentum, "centered": centered}
        super().__init__(parameters, lr, weight_decay, **options)

    def _wanted_buffers(self) -> Sequence[str]:
        wanted = not self.centered, self.centered, self.momentum > 0, self.centered
        return [name for name, has in zip(self._buffer_names, wanted, strict=True) if has]

    def _update(self, p: Array, g: Array, *buffers: Array, scratch: Array) -> None:
        named = dict(zip(self._buffers, buffers, strict=True))
        decayed, work = scratch
        g = self._decay(p, g, decayed)
        if self.centered:
            _move_variance(named["variance"], named["grad_avg"], g, 1 - self.alpha, work)
            np.sqrt(named["variance"], out=work)
        else:
            _move_to_square(named["square_avg"], g, self.alpha, work)
            np.sqrt(named["square_avg"], out=work)
        work += self.eps
        if self.momentum == 0:
            _subtract_quotient(p, g, work, self.lr)
            return
        momentum_buffer = named["momentum_buffer"]
        momentum_buffer *= self.momentum
        np.divide(g, work, out=work)
        momentum_buffer += work
        np.multiply(momentum_buffer, self.lr, out=work)
        p -= work

    def _upgraded(self, d: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Make variances of the mean squares that earlier versions kept, and PyTorch keeps."""
        for name in self._parameters if self.centered else ():
            square, mean = f"square_avg.{name}", f"grad_avg.{name}"
            if square not in d or mean not in d or f"variance.{name}" in d:
                continue
            kept = _arguments.float_array(square, d.pop(square))
            average = _arguments.shaped(mean, d[mean], kept.shape, kept.dtype)
            with np.errstate(all="ignore"):
                exact = kept.astype(np.float64) - np.square(average, dtype=np.float64)
                d[f"variance.{name}"] = np.maximum(exact, 0).astype(kept.dtype)
        return d


def _move(mean: Array, g: Array, share: float, work: Array) -> None:
    """Move the mean by `share` of the way to g."""
    np.subtract(g, mean, out=work)
    work *= share
    mean += work


def _move_to_square(mean: Array, g: Array, keep: float, work: Array) -> None:
    """Keep the share `keep` of the mean and make up the rest with the square of g."""
    np.square(g, out=work)
    work *= 1 - keep
    mean *= keep
    mean += work


def _move_variance(variance: Array, mean: Array, g: Array, share: float, work: Array) -> None:
    """Move a mean, and the variance about it, by `share` of the way to g; the variance is never below 0."""
    np.subtract(g, mean, out=work)
    work *= share
    mean += work
    np.square(work, out=work)
    work /= share
    variance += work
    variance *= 1 - share


def _subtract_quotient(p: Array, numerator: Array, denominator: Array, factor: float) -> None:
    """Subtract factor numerator / denominator from p; overwrite the denominator."""
    np.divide(numerator, denominator, out=denominator)
    denominator *= factor
    p -= denominator


def clip_grad_norm(grads: Mapping[str, Array], max_norm: float) -> float:
    """Scale all gradients in place so that their common norm is at most `max_norm`.

    As ``torch.nn.utils.clip_grad_norm_``: the factor is max_norm / (norm + 1e-6) where that is below 1. The
    norm is accumulated in float64. One that is infinite or NaN makes the gradients 0 or NaN, as in PyTorch.
    Source: Pascanu, Mikolov & Bengio 2013, algorithm 1.

    Args:
        grads: Gradients by name.
        max_norm: At least 0; infinite to change nothing.

    Returns:
        The Euclidean norm of all gradients together, before they were scaled.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: `max_norm` is below 0 or NaN, or a gradient is read-only. In all cases nothing was
            changed.
    """
    max_norm = _arguments.number("max_norm", max_norm, finite=False)
    given = _arguments.mapping("grads", grads)
    arrays = [_arguments.in_place(f"grads[{name!r}]", array) for name, array in given.items()]
    with np.errstate(all="ignore"):
        norm = math.sqrt(sum(map(_sum_of_squares, arrays)))
        factor = max_norm / (norm + 1e-6)
        if not factor >= 1:  # also where it is NaN
            for array in arrays:
                array *= factor
    return norm


def _accepted(parameters: object) -> dict[str, Array]:
    given = _arguments.mapping("parameters", parameters)
    if not given:
        raise ValueError("parameters: expected at least one, got none")
    for name, array in given.items():
        _arguments.in_place(f"parameters[{name!r}]", array)
        if not array.flags.c_contiguous:
            raise ValueError(
                f"parameters[{name!r}]: expected a contiguous array, got strides {array.strides}"
            )
    return dict(given)


def _plain(value: object) -> object:
    """Return a hyper-parameter as a constructor takes it."""
    array = np.asarray(value)
    return tuple(array.tolist()) if array.ndim else array[()]


def _sum_of_squares(array: Array) -> float:
    """Accumulate in float64, in blocks for the same reason as `step`."""
    flat = _flat(array)
    blocks = (flat[k : k + _BLOCK].astype(np.float64, copy=False) for k in range(0, flat.size, _BLOCK))
    return sum(float(block @ block) for block in blocks)


def _flat(array: Array) -> Array:
    """Return a view of one axis where the array is contiguous, else a copy."""
    return array.reshape(-1)
