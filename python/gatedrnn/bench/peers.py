"""Ourselves and the peers, each built from the same torch-ordered weights and run at its best settings.

A library prepares everything it can outside of the timing: weights are constants (so that it can repack
them), inputs are bound once, outputs are allocated once where its interface allows. Where it offers several
ways, the faster one is taken.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import itertools
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import gatedrnn as gr
from gatedrnn import _core
from gatedrnn._optional import installed
from gatedrnn.bench.shapes import Array, Problem
from gatedrnn.bench.timing import Contender, faster

_Session = Callable[[], AbstractContextManager[Any]]
_ENGINES = ("x86", "fbgemm", "onednn")  # of PyTorch's int8


class UnsupportedError(Exception):
    """The peer has no way to compute this problem; the message says what is missing."""


class Peer(ABC):
    """One library."""

    name: ClassVar[str]
    modules: ClassVar[tuple[str, ...]]  # the first one gives the version
    held: ClassVar[bool] = False  # whether an environment variable holds it to an instruction set
    trains: ClassVar[bool] = False

    def __init__(self, threads: int) -> None:
        """Import the library and set its number of threads."""
        self.threads = threads

    @classmethod
    def missing(cls) -> list[str]:
        """Which modules are not installed."""
        return [module for module in cls.modules if not installed(module)]

    @classmethod
    def version(cls) -> str:
        """The installed version."""
        return importlib.metadata.version(cls.modules[0])

    @abstractmethod
    def contenders(self, problem: Problem) -> list[Contender]:
        """Ways to compute the problem, the main one first. Raises UnsupportedError."""


def _gates(problem: Problem, name: str, order: Sequence[int]) -> Array:
    """A parameter with its gates in another order and a leading axis for the one direction."""
    value = problem.weights[name]
    blocks = value.reshape(problem.shape.gates, problem.shape.H, *value.shape[1:])
    return np.ascontiguousarray(blocks[list(order)].reshape(1, *value.shape))


def _parts(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)


def _state_names(problem: Problem) -> tuple[str, ...]:
    return ("h", "c") if problem.shape.cell == "LSTM" else ("h",)


def _in_turns(requests: Sequence[tuple[Callable[[], Any], Any]]) -> Callable[[], Any]:
    """Run requests that hand the state to each other; each comes with what it writes to."""
    turns = itertools.cycle(requests)

    def run() -> Any:
        infer, values = next(turns)
        infer()
        return values

    return run


def _noted(contender: Contender, note: str) -> Contender:
    return replace(contender, note=", ".join(filter(None, (note, contender.note))))


def _has_vnni() -> bool:
    """Without it ONNX Runtime adds products in pairs in 16 bits, which weights of 7 bits cannot overflow."""
    missing = _core.machine()["missing"]
    return any(not missing.get(isa, [isa]) for isa in ("avx_vnni", "avx512_vnni", "neon_dot"))


# Class and arguments, in torch.nn too but for the GRU that it has not.
_MODULES: dict[str, tuple[str, dict[str, Any]]] = {
    "LSTM": ("LSTM", {}),
    "GRU": ("GRU", {}),
    "GRU_BEFORE": ("GRU", {"reset_after": False}),
    "RNN": ("RNN", {}),
    "RNN_RELU": ("RNN", {"nonlinearity": "relu"}),
}


# ----------------------------------------------------------------------------------------------------
class Ours:
    """This library, called as its users call it."""

    name = "gatedrnn"
    name_in_float32 = f"{name} float32"

    @staticmethod
    def module(problem: Problem) -> Any:
        """The module with the problem's weights."""
        shape = problem.shape
        name, options = _MODULES[shape.cell]
        if problem.precision:
            options = options | {"precision": problem.precision}
        module: Any = getattr(gr, name)(shape.I, shape.H, dtype=problem.dtype, **options)
        module.load_state_dict(problem.weights)
        return module

    @classmethod
    def contenders(cls, problem: Problem) -> list[Contender]:
        """One call of the module; for streams a step, and beside it a call with the state fed back.

        In a lower precision the first of them also in float32, beside it.
        """
        ways = cls._ways(problem)
        if problem.precision:
            plain = cls._ways(replace(problem, precision=None))[0]
            ways.append(replace(plain, name=cls.name_in_float32, is_peer=False))
        return ways

    @classmethod
    def _ways(cls, problem: Problem) -> list[Contender]:
        module = cls.module(problem)
        if problem.shape.train:
            return [Contender(cls.name, functools.partial(_train_ours, module, problem), _our_gradients)]
        if not problem.shape.stream:
            run = functools.partial(module, problem.x, lengths=problem.lengths)
            return [Contender(cls.name, run, _our_arrays)]
        stream = module.stream(problem.shape.B)
        step = functools.partial(stream.step, problem.x[0])
        call, reset = _fed_back(module, problem.x)
        return [
            Contender(cls.name, step, lambda y: _our_arrays((y[None], stream.state)), reset=stream.reset),
            Contender(f"{cls.name} m(x)", call, _our_arrays, reset=reset, is_peer=False),
        ]


def _train_ours(module: Any, problem: Problem) -> Any:
    output, _, tape = module.forward(problem.x, lengths=problem.lengths)
    return output, module.backward(tape, problem.d_output)


def _our_gradients(result: Any) -> list[Array]:
    output, (d_x, _, gradients) = result
    return [output, d_x, *gradients.values()]


def _our_arrays(result: Any) -> list[Array]:
    output, state = result
    return [output, *(part[0] for part in _parts(state))]


def _fed_back(module: Any, x: Any) -> tuple[Callable[[], Any], Callable[[], None]]:
    """`module(x, state)` with the returned state as the next one; works for our modules and for PyTorch's."""
    state: Any = None

    def call() -> Any:
        nonlocal state
        result = module(x, state)
        state = result[1]
        return result

    def reset() -> None:
        nonlocal state
        state = None

    return call, reset


# ----------------------------------------------------------------------------------------------------
class PyTorch(Peer):
    """torch.nn under inference_mode; its LSTM in float32 goes through oneDNN by itself.

    Where a precision can be had in several ways, the faster one.
    """

    name = "PyTorch"
    modules = ("torch",)
    held = True  # ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA and MKL's variable
    trains = True

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.torch = importlib.import_module("torch")
        self.torch.set_num_threads(threads)
        with contextlib.suppress(RuntimeError):  # only possible before its first parallel work
            self.torch.set_num_interop_threads(1)

    def contenders(self, problem: Problem) -> list[Contender]:
        """The module; for ragged rows with packing and padding around it, and beside it packed before."""
        ways = [
            [_noted(contender, note) for contender in self._runs(problem, *way)]
            for note, *way in self._ways(problem)
        ]
        return [faster(candidates) for candidates in zip(*ways, strict=True)]

    def _ways(self, problem: Problem) -> list[tuple[str, Any, Any, _Session]]:
        """How the precision can be had: a note, the module, x, and what to enter around a call."""
        torch = self.torch
        module, x = self._module(problem), torch.from_numpy(problem.x)
        if problem.precision == "bfloat16":
            autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16)
            converted = self._module(problem).bfloat16()
            return [
                ("bfloat16", converted, x.bfloat16(), contextlib.nullcontext),
                ("autocast", module, x, autocast),
            ]
        if problem.precision == "int8":
            engines = [name for name in _ENGINES if name in torch.backends.quantized.supported_engines]
            if not engines:
                raise UnsupportedError("has no engine for int8 on this processor")
            return [(name, self._quantized(module, name), x, contextlib.nullcontext) for name in engines]
        if problem.precision == "bfloat16x3":  # its word for it; what comes of it depends on the processor
            torch.set_float32_matmul_precision("high")
            return [("high", module, x, contextlib.nullcontext)]
        return [("", module, x, contextlib.nullcontext)]

    def _quantized(self, module: Any, engine: str) -> Any:
        """Of the module in its container, which stays as it is."""
        torch = self.torch
        if not isinstance(module, (torch.nn.LSTM, torch.nn.GRU)):
            raise UnsupportedError("quantizes no recurrent layer but LSTM and GRU")
        torch.backends.quantized.engine = engine
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated, and there is nothing else in PyTorch
            quantize = torch.ao.quantization.quantize_dynamic
            return quantize(torch.nn.Sequential(module), {type(module)}, dtype=torch.qint8)[0]

    def _runs(self, problem: Problem, module: Any, x: Any, around: _Session) -> list[Contender]:
        if problem.shape.train:
            run = self._training(module.train(), x, problem, around)
            return [Contender(self.name, run, self._gradients)]
        session = functools.partial(self._inference, around)
        if problem.shape.stream:
            call, reset = _fed_back(module, x)
            return [Contender(self.name, call, self._arrays, session, reset)]
        if problem.lengths is None:
            return [Contender(self.name, functools.partial(module, x), self._arrays, session)]
        return self._ragged(module, x, self.torch.from_numpy(problem.lengths), session)

    @contextlib.contextmanager
    def _inference(self, around: _Session) -> Iterator[None]:
        with self.torch.inference_mode(), around():
            yield

    def _ragged(self, module: Any, x: Any, lengths: Any, session: _Session) -> list[Contender]:
        rnn, steps = self.torch.nn.utils.rnn, len(x)
        packed = rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)

        def run() -> Any:
            output, state = module(rnn.pack_padded_sequence(x, lengths, enforce_sorted=False))
            return rnn.pad_packed_sequence(output, total_length=steps)[0], state

        def unpack(result: Any) -> list[Array]:
            return self._arrays((rnn.pad_packed_sequence(result[0], total_length=steps)[0], result[1]))

        before, note = f"{self.name} packed", "packed before, left packed"
        return [
            Contender(self.name, run, self._arrays, session, note="pack, run, pad"),
            Contender(before, lambda: module(packed), unpack, session, note=note),
        ]

    def _training(self, module: Any, x: Any, problem: Problem, around: _Session) -> Callable[[], Any]:
        """Forward and backward; ragged rows are packed before the module and padded after it."""
        torch, rnn = self.torch, self.torch.nn.utils.rnn
        x = x.requires_grad_()
        d_output = torch.from_numpy(problem.d_output)
        d_outputs = {dtype: d_output.to(dtype) for dtype in (d_output.dtype, torch.bfloat16)}
        lengths = None if problem.lengths is None else torch.from_numpy(problem.lengths)

        def run() -> Any:
            module.zero_grad(set_to_none=True)
            x.grad = None
            with around():
                if lengths is None:
                    output = module(x)[0]
                else:
                    packed = module(rnn.pack_padded_sequence(x, lengths, enforce_sorted=False))[0]
                    output = rnn.pad_packed_sequence(packed, total_length=len(x))[0]
            output.backward(d_outputs[output.dtype])
            return output, x, module

        return run

    def _gradients(self, result: Any) -> list[Array]:
        output, x, module = result
        gradients = [parameter.grad for parameter in module.parameters()]
        return [self._array(tensor) for tensor in (output.detach(), x.grad, *gradients)]

    @property
    def classes(self) -> Any:
        """What has the classes LSTM, GRU and RNN."""
        return self.torch.nn

    def _module(self, problem: Problem) -> Any:
        shape = problem.shape
        if shape.cell == "GRU_BEFORE":
            raise UnsupportedError("has no GRU with the reset gate before the product")
        name, options = _MODULES[shape.cell]
        dtype = getattr(self.torch, problem.dtype.name)
        module = getattr(self.classes, name)(shape.I, shape.H, dtype=dtype, **options)
        module.load_state_dict({key: self.torch.from_numpy(w) for key, w in problem.weights.items()})
        return module.eval()

    def _arrays(self, result: Any) -> list[Array]:
        output, state = result
        return [self._array(tensor) for tensor in (output, *(part[0] for part in _parts(state)))]

    def _array(self, tensor: Any) -> Array:
        array: Array = (tensor.float() if tensor.dtype == self.torch.bfloat16 else tensor).numpy()
        return array


# ----------------------------------------------------------------------------------------------------
class OnnxRuntime(Peer):
    """One recurrent node; bound inputs and outputs, or a plain run, whichever is faster."""

    name = "ONNX Runtime"
    modules = ("onnxruntime", "onnx")

    # Where torch's gates stand in ONNX's order: LSTM i,f,g,o -> i,o,f,c; GRU r,z,n -> z,r,h.
    _ORDER: ClassVar[dict[str, tuple[int, ...]]] = {
        "LSTM": (0, 3, 1, 2),
        "GRU": (1, 0, 2),
        "GRU_BEFORE": (1, 0, 2),
        "RNN": (0,),
        "RNN_RELU": (0,),
    }
    _NODE: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {
        "LSTM": ("LSTM", {}),
        "GRU": ("GRU", {"linear_before_reset": 1}),
        "GRU_BEFORE": ("GRU", {"linear_before_reset": 0}),
        "RNN": ("RNN", {"activations": ["Tanh"]}),
        "RNN_RELU": ("RNN", {"activations": ["Relu"]}),
    }

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.runtime = importlib.import_module("onnxruntime")
        self.onnx = importlib.import_module("onnx")

    def contenders(self, problem: Problem) -> list[Contender]:
        """The better one of a bound and a plain run."""
        if problem.dtype != np.float32:
            raise UnsupportedError(f"its recurrent operators do not compute in {problem.dtype.name}")
        if problem.precision == "bfloat16":
            raise UnsupportedError("its recurrent operators do not compute in bfloat16")
        if problem.precision == "int8" and problem.shape.cell != "LSTM":
            raise UnsupportedError("quantizes no recurrent operator but LSTM")
        session = self._session(problem)
        feeds: dict[str, Array] = {"X": problem.x}
        if problem.lengths is not None:
            feeds["sequence_lens"] = problem.lengths.astype(np.int32)
        outputs = ["Y", *(f"Y_{name}" for name in _state_names(problem))]
        if problem.shape.stream:
            ways = [
                self._stream_bound(problem, session, feeds),
                self._stream_plain(problem, session, feeds, outputs),
            ]
        else:
            ways = [self._bound(problem, session, feeds), self._plain(session, feeds, outputs)]
        return [faster(ways)]

    def _session(self, problem: Problem) -> Any:
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = self.runtime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = self.runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        model = self._model(problem)
        if problem.precision == "int8":
            model = self._quantized(model)
        return self.runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def _quantized(self, model: Any) -> Any:
        quantize = importlib.import_module("onnxruntime.quantization").quantize_dynamic
        # It asks, in a warning, for a model whose shapes were inferred before; ours says them all.
        self.onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "layer.onnx"
            quantize(model, file, reduce_range=not _has_vnni())
            return self.onnx.load(file)

    def _model(self, problem: Problem) -> Any:
        helper, types = self.onnx.helper, self.onnx.TensorProto
        shape, order = problem.shape, self._ORDER[problem.shape.cell]
        constants = {
            "W": _gates(problem, "weight_ih_l0", order),
            "R": _gates(problem, "weight_hh_l0", order),
            "B": np.concatenate([_gates(problem, f"bias_{side}_l0", order) for side in ("ih", "hh")], axis=1),
        }
        state = (1, shape.B, shape.H)
        inputs: dict[str, tuple[int, Sequence[int]]] = {"X": (types.FLOAT, (shape.T, shape.B, shape.I))}
        if problem.lengths is not None:
            inputs["sequence_lens"] = (types.INT32, (shape.B,))
        if shape.stream:
            inputs |= {f"initial_{name}": (types.FLOAT, state) for name in _state_names(problem)}
        outputs = {"Y": (shape.T, 1, shape.B, shape.H)} | {
            f"Y_{name}": state for name in _state_names(problem)
        }
        slots = ["X", "W", "R", "B", "sequence_lens", *(f"initial_{name}" for name in _state_names(problem))]
        operator, attributes = self._NODE[shape.cell]
        used = [slot if slot in inputs or slot in constants else "" for slot in slots]
        node = helper.make_node(operator, used, list(outputs), hidden_size=shape.H, **attributes)
        graph = helper.make_graph(
            [node],
            "layer",
            [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
            [helper.make_tensor_value_info(name, types.FLOAT, size) for name, size in outputs.items()],
            initializer=[self.onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)

    def _zeros(self, problem: Problem, *size: int) -> Any:
        return self.runtime.OrtValue.ortvalue_from_numpy(np.zeros(size, problem.dtype))

    def _bound(self, problem: Problem, session: Any, feeds: Mapping[str, Array]) -> Contender:
        shape = problem.shape
        values = [self._zeros(problem, shape.T, 1, shape.B, shape.H)]
        values += [self._zeros(problem, 1, shape.B, shape.H) for _ in _state_names(problem)]
        inputs = {name: self.runtime.OrtValue.ortvalue_from_numpy(value) for name, value in feeds.items()}
        binding = self._binding(problem, session, inputs, values)

        def run() -> Any:
            session.run_with_iobinding(binding)
            return values

        return Contender(self.name, run, _ort_value_arrays, note="io_binding")

    def _binding(
        self, problem: Problem, session: Any, inputs: Mapping[str, Any], outputs: Sequence[Any]
    ) -> Any:
        binding = session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in zip(("Y", *(f"Y_{part}" for part in _state_names(problem))), outputs, strict=True):
            binding.bind_ortvalue_output(name, value)
        return binding

    def _plain(self, session: Any, feeds: Mapping[str, Array], outputs: Sequence[str]) -> Contender:
        run = functools.partial(session.run, list(outputs), dict(feeds))
        return Contender(self.name, run, _ort_arrays, note="run")

    def _stream_bound(self, problem: Problem, session: Any, feeds: Mapping[str, Array]) -> Contender:
        """Two bindings that hand the state to each other: nothing is bound or copied between steps."""
        shape, names = problem.shape, _state_names(problem)
        inputs = {name: self.runtime.OrtValue.ortvalue_from_numpy(value) for name, value in feeds.items()}
        output = self._zeros(problem, 1, 1, shape.B, shape.H)
        states = [[self._zeros(problem, 1, shape.B, shape.H) for _ in names] for _ in range(2)]
        bindings = []
        for turn in range(2):
            before = {f"initial_{name}": value for name, value in zip(names, states[turn], strict=True)}
            values = [output, *states[1 - turn]]
            binding = self._binding(problem, session, inputs | before, values)
            bindings.append((functools.partial(session.run_with_iobinding, binding), values))

        def reset() -> None:
            for value in itertools.chain(*states):
                value.update_inplace(np.zeros((1, shape.B, shape.H), problem.dtype))

        return Contender(self.name, _in_turns(bindings), _ort_value_arrays, reset=reset, note="io_binding")

    def _stream_plain(
        self, problem: Problem, session: Any, feeds: Mapping[str, Array], outputs: Sequence[str]
    ) -> Contender:
        shape = problem.shape
        names = [f"initial_{name}" for name in _state_names(problem)]
        inputs = dict(feeds)

        def run() -> Any:
            result = session.run(outputs, inputs)
            for name, value in zip(names, result[1:], strict=True):
                inputs[name] = value
            return result

        def reset() -> None:
            inputs.update({name: np.zeros((1, shape.B, shape.H), problem.dtype) for name in names})

        reset()
        return Contender(self.name, run, _ort_arrays, reset=reset, note="run")


def _ort_arrays(result: Sequence[Array]) -> list[Array]:
    output, *state = result
    return [output[:, 0], *(part[0] for part in state)]


def _ort_value_arrays(result: Sequence[Any]) -> list[Array]:
    return _ort_arrays([value.numpy() for value in result])


# ----------------------------------------------------------------------------------------------------
class OpenVino(Peer):
    """One sequence node, compiled for a precision; the request is reused, its tensors are NumPy's memory."""

    name = "OpenVINO"
    modules = ("openvino",)
    held = True  # its oneDNN reads ONEDNN_MAX_CPU_ISA

    # Where torch's gates stand in OpenVINO's order: LSTM i,f,g,o -> f,i,c,o; GRU r,z,n -> z,r,h.
    _ORDER: ClassVar[dict[str, tuple[int, ...]]] = OnnxRuntime._ORDER | {"LSTM": (1, 0, 2, 3)}

    _NODE: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {
        "LSTM": ("lstm_sequence", {}),
        "GRU": ("gru_sequence", {"linear_before_reset": True}),
        "GRU_BEFORE": ("gru_sequence", {"linear_before_reset": False}),
        "RNN": ("rnn_sequence", {"activations": ["tanh"]}),
        "RNN_RELU": ("rnn_sequence", {"activations": ["relu"]}),
    }

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.openvino = importlib.import_module("openvino")
        self.ops = importlib.import_module("openvino.opset13")
        self.core = self.openvino.Core()

    def contenders(self, problem: Problem) -> list[Contender]:
        """Its own layout (B, T, I), or ours with transposes around: the faster."""
        if problem.dtype != np.float32:
            raise UnsupportedError(f"its plug-in for CPUs does not compute in {problem.dtype.name}")
        if problem.precision == "int8":
            raise UnsupportedError("quantizes no recurrent layer without data to calibrate on")
        if problem.precision == "bfloat16" and "BF16" not in self.core.get_property(
            "CPU", "OPTIMIZATION_CAPABILITIES"
        ):
            raise UnsupportedError("does not compute in bfloat16 on this processor")
        shape = problem.shape
        if shape.stream:
            return [self._stream(problem)]
        if shape.B == 1 or shape.T == 1:  # both layouts are the same bytes
            return [self._call(problem, time_first=False)]
        return [faster([self._call(problem, time_first=False), self._call(problem, time_first=True)])]

    def _compile(self, problem: Problem, *, time_first: bool) -> Any:
        ops, shape, names = self.ops, problem.shape, _state_names(problem)
        order = self._ORDER[shape.cell]
        x = ops.parameter(
            (shape.T, shape.B, shape.I) if time_first else (shape.B, shape.T, shape.I), np.float32, "x"
        )
        parameters = [x]
        states: list[Any] = [ops.constant(np.zeros((shape.B, 1, shape.H), np.float32)) for _ in names]
        if shape.stream:
            states = [ops.parameter((shape.B, 1, shape.H), np.float32, name) for name in names]
            parameters += states
        lengths: Any = ops.constant(np.full(shape.B, shape.T, np.int32))
        if problem.lengths is not None:
            lengths = ops.parameter((shape.B,), np.int32, "lengths")
            parameters.append(lengths)
        weights = [_gates(problem, f"weight_{side}_l0", order) for side in ("ih", "hh")]
        constants = [ops.constant(value) for value in (*weights, self._bias(problem, order))]
        sequence = ops.transpose(x, (1, 0, 2)) if time_first else x
        common = (sequence, *states, lengths, *constants, shape.H, "forward")
        operator, attributes = self._NODE[shape.cell]
        node = getattr(ops, operator)(*common, **attributes)
        output = ops.transpose(node.output(0), (2, 1, 0, 3)).output(0) if time_first else node.output(0)
        results = [output, *(node.output(1 + index) for index in range(len(names)))]
        model = self.openvino.Model(results, parameters, "layer")
        settings = {
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "bf16" if problem.precision == "bfloat16" else "f32",
            "ENABLE_CPU_PINNING": False,  # else its two threads share the CPU that the caller is held on
        }
        return self.core.compile_model(model, "CPU", settings)

    @staticmethod
    def _bias(problem: Problem, order: Sequence[int]) -> Array:
        """The summed biases; with the reset after the product the candidate's two stay apart."""
        of_input, of_hidden = (_gates(problem, f"bias_{side}_l0", order) for side in ("ih", "hh"))
        total: Array = of_input + of_hidden
        if problem.shape.cell != "GRU":
            return total
        hidden = problem.shape.H
        return np.concatenate(
            [total[:, : 2 * hidden], of_input[:, 2 * hidden :], of_hidden[:, 2 * hidden :]], axis=1
        )

    def _inference(
        self, compiled: Any, inputs: Sequence[Array], outputs: Sequence[Array]
    ) -> Callable[[], Any]:
        """A request on these arrays; its outputs are written into them and not turned into new ones."""
        request = compiled.create_infer_request()
        for index, value in enumerate(inputs):
            request.set_input_tensor(index, self.openvino.Tensor(value, shared_memory=True))
        for index, value in enumerate(outputs):
            request.set_output_tensor(index, self.openvino.Tensor(value, shared_memory=True))

        def infer(_alive: Any = (inputs, outputs)) -> None:  # a shared tensor does not own its memory
            request.infer(share_outputs=True)

        return infer

    def _call(self, problem: Problem, *, time_first: bool) -> Contender:
        shape = problem.shape
        x = problem.x if time_first else np.ascontiguousarray(problem.x.swapaxes(0, 1))
        inputs: list[Array] = [x] if problem.lengths is None else [x, problem.lengths.astype(np.int32)]
        size = (shape.T, 1, shape.B, shape.H) if time_first else (shape.B, 1, shape.T, shape.H)
        outputs = [np.zeros(size, np.float32)]
        outputs += [np.zeros((shape.B, 1, shape.H), np.float32) for _ in _state_names(problem)]
        infer = self._inference(self._compile(problem, time_first=time_first), inputs, outputs)

        def run() -> Any:
            infer()
            return outputs

        def arrays(result: Sequence[Array]) -> list[Array]:
            output, *state = result
            return [
                output[:, 0] if time_first else output[:, 0].swapaxes(0, 1),
                *(part[:, 0] for part in state),
            ]

        return Contender(self.name, run, arrays, note="(T, B, I)" if time_first else "(B, T, I)")

    def _stream(self, problem: Problem) -> Contender:
        """Two requests that hand the state to each other in shared memory."""
        shape, names = problem.shape, _state_names(problem)
        compiled = self._compile(problem, time_first=False)
        x = np.ascontiguousarray(problem.x.swapaxes(0, 1))
        output = np.zeros((shape.B, 1, 1, shape.H), np.float32)
        states = [[np.zeros((shape.B, 1, shape.H), np.float32) for _ in names] for _ in range(2)]
        requests = []
        for turn in range(2):
            after = states[1 - turn]
            values = [output, *after]
            requests.append((self._inference(compiled, [x, *states[turn]], values), values))

        def reset() -> None:
            for value in itertools.chain(*states):
                value.fill(0)

        def arrays(result: Sequence[Array]) -> list[Array]:
            return [result[0][:, 0].swapaxes(0, 1), *(part[:, 0] for part in result[1:])]

        return Contender(self.name, _in_turns(requests), arrays, reset=reset)


PEERS: dict[str, type[Peer]] = {"pytorch": PyTorch, "onnxruntime": OnnxRuntime, "openvino": OpenVino}
