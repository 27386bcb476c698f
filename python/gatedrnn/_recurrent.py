"""Calls of LSTM, GRU and RNN over whole sequences: `_core.Network` computes, and `_packs` has it ready."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

import numpy as np

from gatedrnn import _checks, _core, _storage
from gatedrnn._module import _Module, _rebuild
from gatedrnn._options import _Option
from gatedrnn._parameters import parameter_shapes

if TYPE_CHECKING:
    import os

    import numpy.typing as npt

    from gatedrnn._parameters import Shapes

    Array = npt.NDArray[np.floating[Any]]

__all__ = ["_Recurrent", "_rebuild"]  # older pickles look for the second one here

_State = TypeVar("_State")  # an array, or the pair (h, c)
_Given = TypeVar("_Given")  # the same, where parts of a pair may be None


class _Recurrent(_Module, Generic[_State, _Given]):
    """What all modules share. A class adds data: constructor arguments, the engine's name for the cell."""

    __slots__ = ("_batch_first", "_dropout_generator")

    num_layers = _Option[int]("Layers, each fed with the output of the one below, L.")
    batch_first = _Option[bool]("Whether x and the output are (B, T, ...) instead of (T, B, ...).")
    dropout = _Option[float]("Probability of dropout between layers, in training only.")
    bidirectional = _Option[bool]("Whether each layer also runs from the end to the start.")
    direction = _Option[str]('"forward", or "reverse" for layers that only run from the end to the start.')
    merge = _Option[str]('How both directions of the output are joined: "concat", "sum", "mul" or "mean".')
    learn_state = _Option[bool]("Whether the state that rows begin with is a parameter.")

    def _initialize(self, seed: object, device: object, precision: object, **options: object) -> None:
        """Finish a constructor: check the arguments, then draw the parameters."""
        checked_seed = _checks.seed("seed", seed)
        self._build(options)
        self._place(device, precision)
        _checks.warn_of_dropout(self.dropout, self.num_layers)
        self._store.draw(self.hidden_size**-0.5, checked_seed)
        self._dropout_generator = np.random.default_rng(checked_seed)

    def _build(self, options: Mapping[str, object]) -> None:
        super()._build(options)
        self._batch_first = self.batch_first
        self._dropout_generator = np.random.default_rng()

    @classmethod
    def _shapes(cls, options: Mapping[str, Any]) -> Shapes:
        return parameter_shapes(options, cls._cell_of(options))

    def __call__(
        self,
        x: npt.ArrayLike,
        state: _Given | None = None,
        *,
        lengths: npt.ArrayLike | None = None,
        resets: npt.ArrayLike | None = None,
        mask: npt.ArrayLike | None = None,
        mask_output: Literal["zeros", "previous"] = _checks.ZEROS,
        out: Array | None = None,
    ) -> tuple[Array, _State]:
        """Run over whole sequences; keep nothing.

        With D directions (1 or 2) and S the width of h (`proj_size` where it is set, else `hidden_size`):

        Args:
            x: Input, (T, B, I), or (B, T, I) with `batch_first`, or (T, I) for a single row: whatever NumPy
                reads as floating-point numbers (arrays of any strides, lists, data frames, tensors on the
                CPU). What is not of the module's dtype is converted to it.
            state: Initial state, zeros where None, with `learn_state` the parameters: h of shape (L*D, B, S);
                for LSTM the pair (h, c), c of shape (L*D, B, H). Where x is unbatched, B may be left out.
            lengths: B integers in 0..T, in any order: how many steps of each row are valid. Output past them
                is 0, the final state is that of the row's last valid step (the initial state for a row of
                length 0), and the reverse direction starts there.
            resets: Booleans laid out like x, (T, B): where true, an episode begins: before that step the
                row's state is zero, or with `learn_state` the learnt one. The reverse direction comes to the
                same borders from the other side: it takes the initial state into the last episode, and its
                final state out of the first.
            mask: Booleans laid out like x, (T, B): where false, the step is skipped, whatever x holds there.
                The state stays. None: every step counts. See docs/masks-and-episodes.md for both.
            mask_output: The output of skipped steps: "zeros", or "previous" for that of the row's last step
                before that was not skipped (in the order of each direction), 0 where there is none. Past a
                row's length it is 0.
            out: Array to write the output into, of the output's shape and dtype; a new one where None.

        Returns:
            The output, (T, B, D*S) laid out like x, or (T, B, S) where `merge` is not "concat", and the final
            state, (L*D, B, S), without B where x is unbatched.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: An argument has the wrong shape or value. In both cases nothing was written.
        """
        network = self._packs.network or self._packs.get()
        repeats = mask_output is not _checks.ZEROS and _checks.repeats_output(mask_output)
        result: tuple[Array, _State] = network.infer(
            x, state, lengths, out, self._batch_first, mask, resets, repeats
        )
        return result

    def forward(
        self,
        x: npt.ArrayLike,
        state: _Given | None = None,
        *,
        lengths: npt.ArrayLike | None = None,
        resets: npt.ArrayLike | None = None,
        mask: npt.ArrayLike | None = None,
        mask_output: Literal["zeros", "previous"] = _checks.ZEROS,
        recompute: bool = False,
        dropout_seed: int | None = None,
    ) -> tuple[Array, _State, _core.Tape]:
        """Run over whole sequences and keep on a tape what `backward` needs.

        Output and final state have the bits of a call's, but for `dropout`, which acts here and not there:
        between layers, each value is zeroed with this probability and the others are divided by what is left
        (Srivastava et al. 2014).

        Args:
            x: As in a call. The tape has a copy, so that you may write into it as soon as this returns.
            state: As in a call.
            lengths: As in a call.
            resets: As in a call. No gradient crosses where an episode begins.
            mask: As in a call.
            mask_output: As in a call.
            recompute: Whether to keep only the states and compute the rest again in `backward`, block by
                block, for 1.3 times the time. Of the memory, a long sequence takes a sixth with an LSTM, a
                fifth or a quarter with a GRU, with `dropout` up to a third; an RNN keeps only states anyway.
                (Chen et al. 2016, Training deep nets with sublinear memory cost.) No bit changes on the
                processor.
            dropout_seed: Integer of at least 0 that decides what is dropped; None for one drawn from the
                module's own generator, which its `seed` started.

        Returns:
            The output, the final state, and the tape. A tape may be used more than once, from any thread; it
            keeps the parameters that the module has now. ``tape.nbytes`` is its size without the copy of x.
            Errors are those of a call, and a ValueError where `precision` is "int8".
        """
        recompute = _checks.flag("recompute", recompute)
        repeats = _checks.repeats_output(mask_output)
        seed = _checks.seed("dropout_seed", dropout_seed)
        network = self._packs.get(for_backward=True)
        dropout = self.dropout if self.num_layers > 1 else 0.0
        if seed is None:
            seed = int(self._dropout_generator.integers(2**63)) if dropout else 0
        result: tuple[Array, _State, _core.Tape] = network.forward(
            x,
            state,
            lengths,
            self._batch_first,
            dropout,
            seed % 2**64,
            recompute,
            self._identity,
            mask=mask,
            resets=resets,
            repeats=repeats,
        )
        return result

    @overload
    def backward(
        self,
        tape: _core.Tape,
        d_output: npt.ArrayLike | None,
        d_state_n: _Given | None = None,
        *,
        accumulate_into: dict[str, Array] | None = None,
        input_gradient: Literal[True] = True,
    ) -> tuple[Array, _State, dict[str, Array]]: ...
    @overload
    def backward(
        self,
        tape: _core.Tape,
        d_output: npt.ArrayLike | None,
        d_state_n: _Given | None = None,
        *,
        accumulate_into: dict[str, Array] | None = None,
        input_gradient: bool,
    ) -> tuple[Array | None, _State, dict[str, Array]]: ...
    def backward(
        self,
        tape: _core.Tape,
        d_output: npt.ArrayLike | None,
        d_state_n: _Given | None = None,
        *,
        accumulate_into: dict[str, Array] | None = None,
        input_gradient: bool = True,
    ) -> tuple[Array | None, _State, dict[str, Array]]:
        """Compute the gradients of a loss by everything that went into `forward`.

        The equations stand in docs/lstm-backward.md and docs/gru-backward.md. The results have the same bits
        for any number of threads.

        Args:
            tape: What `forward` of this module returned; its parameters may have changed since.
            d_output: The loss's gradient by the output, in its shape; None for zeros. What it says past a
                row's length, and in skipped steps whose output was zeros, is ignored.
            d_state_n: The gradient by the final state, in its shape; None for zeros. For LSTM a pair, either
                part of which may be None.
            accumulate_into: Arrays by parameter name, C-contiguous and of the module's dtype, to which the
                gradients are added; new ones where None.
            input_gradient: Whether to compute that by x, which an input that is data does not need.

        Returns:
            The gradient by x (None without `input_gradient`), the gradient by the initial state (in the
            state's shape, also where `forward` had none), and those by the parameters, by name as in
            `state_dict()`; with `accumulate_into` this same dictionary. Those by ``h_0`` and ``c_0`` are
            zeros where `forward` was given a state.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: An argument has the wrong shape, or the tape is of another module. In both cases
                nothing was written.
        """
        input_gradient = _checks.flag("input_gradient", input_gradient)
        gradients = self._gradients_for(tape, accumulate_into)
        network = self._packs.get_any()
        d_x, d_state = network.backward(
            tape, d_output, d_state_n, gradients, accumulate_into is not None, input_gradient, self._identity
        )
        return d_x, d_state, gradients

    def stream(self, batch_size: int = 1) -> _core.Stream[_State, _Given]:
        """Make a stream: `batch_size` sequences that go forward together, one time step at a time.

        The steps give the same bits as one call over the whole sequences. A stream keeps the parameters that
        the module has now. One stream belongs to one thread at a time; any number of streams share a module.
        Streams can be copied and pickled, and the copies go on by themselves, wherever they are.

        Args:
            batch_size: Number of sequences, B.

        Returns:
            A stream with ``step(x, out=None, *, resets=None, mask=None)``, x (B, I) to output (B, S),
            ``state`` in the layout of a batched call's, and ``reset(rows=None)``. It begins as a call
            without a state does.

        Raises:
            TypeError: `batch_size` is not an integer.
            ValueError: `batch_size` is below 1 or more than fits in memory, or the module is bidirectional or
                runs in reverse: it would need the end of the sequence first.
        """
        batch_size = _checks.integer("batch_size", batch_size, 1)
        if self.bidirectional:
            raise ValueError("stream: expected a module with bidirectional=False, got bidirectional=True")
        if self.direction == "reverse":
            raise ValueError("stream: expected a module with direction='forward', got direction='reverse'")
        elements_per_row = self.input_size + self.num_layers * self.hidden_size
        _checks.fitting("batch_size", batch_size * elements_per_row, self.dtype)
        stream: _core.Stream[_State, _Given] = self._packs.get_for_streams().stream(batch_size)
        return stream

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write parameters and constructor arguments to a safetensors file, for `gatedrnn.load`.

        The file appears as a whole or not at all. Any reader of safetensors can read the tensors. A module on
        "cuda" is written as one on the CPU, without its precision there.

        Args:
            path: Where to; a file that exists is replaced.

        Raises:
            TypeError: `path` is not a path.
            OSError: The file cannot be written.
        """
        known = next(base.__name__ for base in type(self).__mro__ if _Recurrent in base.__bases__)
        precision = self._precision if self._device == "cpu" else None
        _storage.save(path, known, self._options, precision, self.state_dict())

    def _generators(self) -> dict[str, np.random.Generator]:
        """What a training run draws from, by name: it belongs to the state of the run."""
        return {"dropout": self._dropout_generator} if self.dropout > 0 else {}

    def _more_state(self) -> tuple[Any, ...]:
        return (copy.deepcopy(self._dropout_generator),)

    def _set_more_state(self, dropout_generator: np.random.Generator | None = None) -> None:
        if dropout_generator is not None:
            self._dropout_generator = dropout_generator
