"""SGD, Adam, AdamW and RMSprop with the arguments, defaults and equations of ``torch.optim``.

In the equations of the classes p is a parameter, g its gradient, k = 1, 2, ... the step, and all operations
are elementwise. Where `weight_decay` acts on the gradient (all but AdamW), g stands for g + weight_decay p.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from gatedrnn import _checks
from gatedrnn.train import _arguments
from gatedrnn.train._optimizer import Optimizer

if TYPE_CHECKING:
    import numpy.typing as npt

    from gatedrnn.train._optimizer import Array, Checks

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "RMSprop"]


class SGD(Optimizer):
    """Stochastic gradient descent, with or without momentum.

    ::

        b = g                                     first step
        b = momentum b + (1 - dampening) g        later steps
        p = p - lr b                              without momentum b is g
        p = p - lr (g + momentum b)               nesterov

    Sources: Sutskever, Martens, Dahl & Hinton 2013, with lr outside of b as in PyTorch.

    `parameters`, `lr`, `weight_decay` and the errors raised are those of `Optimizer`.

    Args:
        momentum: At least 0.
        dampening: At least 0; 0 with `nesterov`.
        nesterov: Whether to look ahead; needs momentum.
    """

    _buffer_names = ("momentum_buffer",)
    _option_checks: ClassVar[Checks] = {
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

    `parameters`, `lr`, `weight_decay` and the errors raised are those of `Optimizer`.

    Args:
        betas: beta1 and beta2, each at least 0 and below 1.
        eps: At least 0.
    """

    _buffer_names = ("exp_avg", "exp_avg_sq")
    _option_checks: ClassVar[Checks] = {
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

    Arguments and errors are those of `Adam`.
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

    `parameters`, `lr`, `weight_decay` and the errors raised are those of `Optimizer`.

    Args:
        alpha: At least 0 and below 1.
        eps: At least 0.
        momentum: At least 0.
        centered: Whether to subtract the square of the gradient's running mean.
    """

    _buffer_names = ("square_avg", "variance", "momentum_buffer", "grad_avg")
    _option_checks: ClassVar[Checks] = {
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
