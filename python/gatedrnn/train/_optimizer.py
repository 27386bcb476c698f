"""What all optimisers share: parameters, buffers of the same shapes, blocks, state and copies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from gatedrnn import _checks
from gatedrnn._parameters import Loan, ParameterStore, Part, store_of
from gatedrnn.train import _arguments
from gatedrnn.train._blocks import BLOCK, blocks_of
from gatedrnn.train._numpy_errors import floating_point_errors_later

if TYPE_CHECKING:
    import numpy.typing as npt
    from typing_extensions import Self

    Array = npt.NDArray[np.floating[Any]]
    Checks = Mapping[str, Callable[[str, Any], Any]]  # by hyper-parameter


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
    _option_checks: ClassVar[Checks] = {
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
        return {dtype: np.empty((2, min(largest, BLOCK)), dtype) for dtype in dtypes}

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
        with floating_point_errors_later(f"{type(self).__name__}.step"):
            self._steps += 1
            for name, parameter in self._parameters.items():
                buffers = [arrays[name] for arrays in self._buffers.values()]
                scratch = self._scratch[parameter.dtype]
                for blocks in blocks_of(parameter, accepted[name], *buffers):
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


def check_optimizer(name: str, value: object) -> None:
    """Accept an optimiser of `gatedrnn.train`."""
    if not isinstance(value, Optimizer):
        raise TypeError(f"{name}: expected an optimizer of gatedrnn.train, got {_checks.described(value)}")


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
