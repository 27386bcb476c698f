"""Recurrent layers of Keras as modules of ours: from layers and models, and from files without Keras."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import zipfile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gatedrnn import _checks
from gatedrnn._modules import GRU, LSTM, RNN
from gatedrnn._optional import required
from gatedrnn.convert import _verify
from gatedrnn.convert._reorder import reorder
from gatedrnn.convert._torch import check_finite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy.typing as npt

    Array = npt.NDArray[Any]

# Our class, and gates in Keras' order, by Keras' class.
_KINDS: dict[str, tuple[Any, str]] = {"LSTM": (LSTM, "ifco"), "GRU": (GRU, "zrh"), "SimpleRNN": (RNN, "h")}
_CUDNN = {"CuDNNLSTM": "LSTM", "CuDNNGRU": "GRU"}
_MERGES = {"concat": "concat", "sum": "sum", "mul": "mul", "ave": "mean"}
_SAME_NAMES = ("tanh", "sigmoid", "relu", "softsign", "softplus", "linear")
_MOST_INFLATION = 100  # of what a file unpacks to


class _Layer(NamedTuple):
    """A layer's configuration, and its weights by direction: kernel, recurrent kernel, bias if any."""

    name: str
    kind: str
    config: Mapping[str, Any]
    merge: str | None  # of a Bidirectional one
    weights: list[list[Array]]
    version: str  # of Keras


def from_keras(source: Any) -> dict[str, Any]:
    """Make a module of each LSTM, GRU and SimpleRNN layer of a Keras layer, model or file.

    Modules are `batch_first`, as Keras is. Bidirectional layers become bidirectional modules of Keras' merge
    mode, or where that is None, with both outputs side by side; `go_backwards` becomes `direction` "reverse",
    whose output stands at its own time, where Keras' stands in the order of computation. Layers of CuDNN,
    whose weights have another layout, are recognised, and an `RNN` with a cell is that cell's layer. Other
    layers, such as an `RNN` with stacked cells or with one's own, are passed over.

    Args:
        source: A layer or model of Keras 3 or ``tf.keras``, or the path of a ``.keras`` file or of an HDF5
            file (``.h5``, ``.hdf5``), which are read without Keras, by ``h5py``. An HDF5 file has to have the
            whole model, or weights of CuDNN's layers, which say by their layout what they are.

    Returns:
        Modules by layer name, in float64 where a layer's weights are, else in float32.

    Raises:
        TypeError: `source` is none of these.
        ValueError: The file is damaged, has links that lead out of it, or weights alone that do not say what
            they are; or a layer has what modules cannot represent, which the error names.
        OSError: The file cannot be read.
        ImportError: A path is given, and ``h5py`` is not installed.
        RuntimeError: A module does not compute what its layer does, which would be our mistake.
    """
    if isinstance(source, (str, os.PathLike)):
        layers = _layers_of_file(os.fsdecode(source))
    elif hasattr(source, "get_config") and hasattr(source, "get_weights"):
        layers = list(_layers_of_object(source))
    else:
        described = _checks.described(source)
        raise TypeError(f"source: expected a layer or model of Keras, or a path, got {described}")
    modules: dict[str, Any] = {}
    for layer in layers:
        if layer.name in modules:
            raise ValueError(f"source: expected layers of different names, got {layer.name!r} twice")
        try:
            modules[layer.name] = _module_of(layer)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{layer.kind} {layer.name!r}: {error}") from error
    return modules


# ---- a layer as a module ----


def _module_of(layer: _Layer) -> Any:
    kind = _CUDNN.get(layer.kind, layer.kind)
    cls, gates = _KINDS[kind]
    units = layer.config.get("units")
    if isinstance(units, bool) or not isinstance(units, int) or units < 1:
        raise ValueError(f"expected a number of units, got {_checks.shortened(units)}")
    directions = [_plain(layer.kind, kind, units, weights) for weights in layer.weights]
    kernel, _, bias = directions[0]
    options: dict[str, Any] = {
        "bias": bias is not None,
        "batch_first": True,
        "bidirectional": len(directions) == 2,
        "merge": "concat" if layer.merge is None else _MERGES[layer.merge],
        "direction": "reverse" if layer.config.get("go_backwards") and len(directions) == 1 else "forward",
        "dtype": np.float64 if kernel.dtype == np.float64 else np.float32,
    }
    functions = _functions(layer, kind)
    if kind == "GRU":
        options["reset_after"] = bias.ndim == 2 if bias is not None else bool(layer.config.get("reset_after"))
    if kind == "SimpleRNN" and functions["h"] in ("tanh", "relu"):
        options["nonlinearity"] = functions["h"]
    else:
        options["activations"] = functions
    made = cls(kernel.shape[0], units, **options)
    parameters: dict[str, Array] = {}
    for suffix, (kernel, recurrent, bias) in zip(("_l0", "_l0_reverse"), directions, strict=False):
        parameters["weight_ih" + suffix] = _ordered(kernel, gates)
        parameters["weight_hh" + suffix] = _ordered(recurrent, gates)
        if bias is not None:
            of_inputs, of_state = bias if bias.ndim == 2 else (bias, np.zeros_like(bias))
            parameters["bias_ih" + suffix] = _ordered(of_inputs, gates)
            parameters["bias_hh" + suffix] = _ordered(of_state, gates)
    check_finite(parameters)
    made.load_state_dict(parameters)
    source = _equations(kind, directions, functions, options, layer.merge)
    _verify.verify(f"{layer.kind} {layer.name!r}", made, source)
    return made


def _ordered(weights: Array, gates: str) -> Array:
    if len(gates) > 1:
        return reorder(weights, gates=gates, layout="columns")
    return np.ascontiguousarray(weights.T)


_Weights = tuple[Any, Any, Any]  # kernel (I, G*H), recurrent kernel (H, G*H), and bias or None


def _plain(layer_kind: str, kind: str, units: int, weights: list[Array]) -> _Weights:
    """Check the weights of a direction, and return them in the layout of plain layers."""
    columns = len(_KINDS[kind][1]) * units
    if len(weights) not in (2, 3):
        raise ValueError(f"expected a kernel, a recurrent kernel, perhaps a bias, got {len(weights)} weights")
    kernel, recurrent = weights[:2]
    bias = weights[2] if len(weights) == 3 else None
    for name, value, expected in (
        ("kernel", kernel, (None, columns)),
        ("recurrent kernel", recurrent, (units, columns)),
    ):
        if value.dtype.kind != "f":
            raise ValueError(f"expected floating-point numbers in the {name}, got dtype {value.dtype}")
        rows = expected[0] or (len(value) if value.ndim else 0)
        if value.shape != (rows, columns) or not value.size:
            raise ValueError(f"expected a {name} of {expected}, got shape {value.shape}")
    doubled = bias is not None and kind != "SimpleRNN" and bias.shape == (2 * columns,)
    if layer_kind in _CUDNN or doubled:
        kernel, recurrent, bias = _of_cudnn(kind, units, kernel, recurrent, bias)
    shapes = [(columns,), (2, columns)] if kind == "GRU" else [(columns,)]
    if bias is not None and bias.shape not in shapes:
        raise ValueError(f"expected a bias of {' or '.join(map(str, shapes))}, got shape {bias.shape}")
    return kernel, recurrent, bias


def _of_cudnn(kind: str, units: int, kernel: Array, recurrent: Array, bias: Any) -> _Weights:
    """Turn CuDNN layers' weights around.

    A gate's kernel is the memory of an (H, I) matrix, its recurrent one is transposed, and there are two
    biases, side by side, which an LSTM adds.
    """
    gates = len(_KINDS[kind][1])
    blocks = np.split(kernel, gates, axis=1)
    kernel = np.concatenate([block.reshape(units, -1).T for block in blocks], axis=1)
    recurrent = np.concatenate([block.T for block in np.split(recurrent, gates, axis=1)], axis=1)
    if bias is not None and bias.shape == (2 * gates * units,):
        bias = bias.reshape(2, -1)
        bias = bias.sum(axis=0) if kind == "LSTM" else bias
    return kernel, recurrent, bias


def _functions(layer: _Layer, kind: str) -> dict[str, Any]:
    """Return the functions by our gates."""
    version_2 = not layer.version.startswith("3")
    activation = _function(layer.config.get("activation", "tanh"), version_2)
    if kind == "SimpleRNN":
        return {"h": activation}
    at_gates = _function(layer.config.get("recurrent_activation", "sigmoid"), version_2)
    if kind == "GRU":
        return {"r": at_gates, "z": at_gates, "n": activation}
    return {"i": at_gates, "f": at_gates, "g": activation, "o": at_gates, "h": activation}


def _function(given: Any, version_2: bool) -> str | tuple[Any, ...]:
    name = given.get("config", given.get("class_name")) if isinstance(given, dict) else given
    if name in _SAME_NAMES:
        return str(name)
    if name is None:
        return "linear"
    if name == "hard_sigmoid":  # 0.2 x + 0.5 up to version 2, relu6(x + 3) / 6 from 3 on
        return ("hard_sigmoid", 0.2, 0.5) if version_2 else ("hard_sigmoid", 1 / 6, 0.5)
    if name == "elu":
        return ("elu", 1.0)
    if name == "leaky_relu":
        return ("leaky_relu", 0.2)
    expected = ", ".join((*_SAME_NAMES, "hard_sigmoid", "elu", "leaky_relu"))
    raise ValueError(f"expected an activation of {expected}, got {_checks.shortened(name)}")


# ---- its own equations, for the proof ----


def _equations(
    kind: str,
    directions: list[_Weights],
    functions: Mapping[str, Any],
    options: Mapping[str, Any],
    merge: str | None,
) -> Callable[[Array], Array]:
    """Read Keras' equations from its weights as they are."""
    f = {gate: _verify.function(plain) for gate, plain in functions.items()}

    def run(weights: _Weights, x: Array) -> Array:
        kernel: Any
        recurrent: Any
        bias: Any
        kernel, recurrent, bias = (w if w is None else w.astype(np.float64) for w in weights)
        of_inputs, of_state = (0.0, 0.0) if bias is None else bias if bias.ndim == 2 else (bias, 0.0)
        h = c = np.zeros((x.shape[1], len(recurrent)))
        steps = []
        for step in x:
            a = step @ kernel + of_inputs
            if kind == "SimpleRNN":
                h = f["h"](a + h @ recurrent)
            elif kind == "LSTM":
                i, forget, g, o = np.split(a + h @ recurrent, 4, axis=1)
                c = f["f"](forget) * c + f["i"](i) * f["g"](g)
                h = f["o"](o) * f["h"](c)
            else:
                H = len(recurrent)
                inner = h @ recurrent + of_state
                z, r = f["z"](a[:, :H] + inner[:, :H]), f["r"](a[:, H : 2 * H] + inner[:, H : 2 * H])
                last = recurrent[:, 2 * H :]
                recurrent_part = r * inner[:, 2 * H :] if options["reset_after"] else (r * h) @ last
                h = z * h + (1 - z) * f["n"](a[:, 2 * H :] + recurrent_part)
            steps.append(h)
        return np.stack(steps)

    def output(x: Array) -> Array:
        backwards = options["direction"] == "reverse"
        y = run(directions[0], x[::-1] if backwards else x)
        if len(directions) == 1:
            return y[::-1] if backwards else y
        other = run(directions[1], x[::-1])[::-1]
        joined: dict[str | None, Callable[[], Array]] = {
            "sum": lambda: y + other,
            "mul": lambda: y * other,
            "ave": lambda: (y + other) / 2,
            "concat": lambda: np.concatenate([y, other], axis=2),
        }
        return joined[merge or "concat"]()

    return output


# ---- where layers come from ----


def _layers_of_config(
    name: str, class_name: str, config: Mapping[str, Any]
) -> Iterator[tuple[str, str, Any, Any]]:
    """Give name, kind, config and merge mode of what a layer holds that is recurrent."""
    kind, of_kind = _unwrapped(class_name, config)
    if kind in _KINDS or kind in _CUDNN:
        yield name, kind, of_kind, None
    elif class_name == "Bidirectional":
        yield name, *_bidirectional(name, config)


def _unwrapped(class_name: str, config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return an RNN with a cell as the layer that computes the same; others as they are."""
    cell = config.get("cell") if class_name == "RNN" else None
    if not isinstance(cell, dict) or not isinstance(cell.get("config"), dict):
        return class_name, config
    kind = str(cell.get("class_name")).removesuffix("Cell")
    return kind, {**cell["config"], "go_backwards": config.get("go_backwards")}


def _bidirectional(name: str, config: Mapping[str, Any]) -> tuple[str, Any, str]:
    forward = config.get("layer") or {}
    backward, merge = config.get("backward_layer"), config.get("merge_mode", "concat")
    kind, inner = _unwrapped(str(forward.get("class_name")), forward.get("config") or {})
    if kind not in _KINDS and kind not in _CUDNN:
        raise ValueError(f"Bidirectional {name!r}: expected an LSTM, GRU or SimpleRNN in it, got {kind!r}")
    merge = "concat" if merge is None else merge  # two outputs, which stand side by side here
    if merge not in _MERGES:
        known = ", ".join(map(repr, _MERGES))
        raise ValueError(f"Bidirectional {name!r}: expected a merge_mode of {known}, got {merge!r}")
    if inner.get("go_backwards"):
        raise ValueError(f"Bidirectional {name!r}: expected a forward layer that does not go backwards")
    told = ("units", "activation", "recurrent_activation", "reset_after", "use_bias")
    other = (backward or {}).get("config")
    other = _unwrapped(str(forward.get("class_name")), other)[1] if other else inner
    if any(other.get(key) != inner.get(key) for key in told):
        raise ValueError(f"Bidirectional {name!r}: expected layers of the same kind in both directions")
    return kind, inner, merge


def _layers_of_object(source: Any, outer: str = "") -> Iterator[_Layer]:
    class_name, name = type(source).__name__, outer + str(getattr(source, "name", ""))
    keras = importlib.import_module(type(source).__module__.split(".")[0])
    version = str(getattr(getattr(keras, "keras", keras), "__version__", "2"))
    inner = getattr(source, "layers", None)
    if class_name not in ("Bidirectional", "RNN") and inner is not None:
        for layer in inner:
            yield from _layers_of_object(layer)
        return
    config = source.get_config()
    if class_name == "Bidirectional":
        config = dict(config, backward_layer={"config": source.backward_layer.get_config()})
    for found, kind, of_kind, merge in _layers_of_config(name, class_name, config):
        weights = [np.asarray(w) for w in source.get_weights()]
        half = len(weights) // 2
        by_direction = [weights] if merge is None else [weights[:half], weights[half:]]
        yield _Layer(found, kind, of_kind, merge, by_direction, version)


def _layers_of_file(path: str) -> list[_Layer]:
    with open(path, "rb") as file:
        start = file.read(4)
    h5py = required("h5py", "from_keras of a file")
    try:
        if start == b"PK\x03\x04":
            return _layers_of_archive(h5py, path)
        with h5py.File(path, "r") as file:
            return _layers_of_hdf5(path, file)
    except (zipfile.BadZipFile, OSError, KeyError, RuntimeError, RecursionError, AttributeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: expected a .keras or HDF5 file of Keras: {first}") from error


def _layers_of_archive(h5py: Any, path: str) -> list[_Layer]:
    size = os.path.getsize(path)
    with zipfile.ZipFile(path) as archive:

        def read(name: str) -> bytes:
            if archive.getinfo(name).file_size > _MOST_INFLATION * size:
                raise ValueError(f"{path}: expected a {name} not much larger than the file, got more")
            return archive.read(name)

        config = _json(path, read("config.json"))
        version = str(_json(path, read("metadata.json")).get("keras_version", "3"))
        with h5py.File(io.BytesIO(read("model.weights.h5")), "r") as file:
            groups = _groups_by_order(path, config, file) | _groups_by_name(path, file)
            layers = []
            for name, kind, of_kind, merge in _found_in(config):
                group = groups.get(name)
                if group is None:
                    raise ValueError(f"{path}: expected weights of the layer {name!r}, got none")
                parts = [group] if merge is None else [group["forward_layer"], group["backward_layer"]]
                weights = [_variables(path, part) for part in parts]
                layers.append(_Layer(name, kind, of_kind, merge, weights, version))
            return layers


def _layers_of_hdf5(path: str, file: Any) -> list[_Layer]:
    if "model_config" not in file.attrs:
        return list(_layers_of_weights(path, file))
    config = _json(path, file.attrs["model_config"])
    raw = file.attrs.get("keras_version", "2")
    version = raw.decode() if isinstance(raw, bytes) else str(raw)
    datasets = list(_datasets(path, file["model_weights"], ()))
    layers = []
    for name, kind, of_kind, merge in _found_in(config):
        own = [(parts, dataset) for parts, dataset in datasets if name in parts[:-1]]
        sides = [own]
        if merge is not None:
            sides = [
                [(parts, data) for parts, data in own if any(part.startswith(side) for part in parts)]
                for side in ("forward_", "backward_")
            ]
        layers.append(_Layer(name, kind, of_kind, merge, [_kernels(side) for side in sides], version))
    return layers


def _layers_of_weights(path: str, file: Any) -> Iterator[_Layer]:
    """Give the layers of a file of weights alone, if they are CuDNN's, which have one form.

    Of other layers the functions, and of bidirectional ones the merge mode, would have to be guessed.
    """
    groups: dict[tuple[str, ...], list[tuple[tuple[str, ...], Any]]] = {}
    for parts, dataset in _datasets(path, file, ()):
        groups.setdefault(parts[:-1], []).append((parts, dataset))
    for parts, found in groups.items():
        weights = _kernels(found)
        if len(weights) < 2 or weights[1].ndim != 2:
            continue  # is not recurrent
        units, columns = weights[1].shape
        kind = {3: "CuDNNGRU", 4: "CuDNNLSTM"}.get(columns // units if units else 0)
        doubled = len(weights) == 3 and weights[2].shape == (2 * columns,)
        sided = any(part.startswith(("forward_", "backward_")) for part in parts)
        if kind is None or not doubled or sided:
            expected = "a whole model, with its configuration, or layers of CuDNN"
            raise ValueError(f"{path}: expected {expected}, got the weights alone of {parts[0]!r}")
        yield _Layer(parts[0], kind, {"units": units}, None, [weights], "2")


def _kernels(found: list[tuple[tuple[str, ...], Any]]) -> list[Array]:
    """Read kernel, recurrent kernel and bias, of these datasets by their last names."""
    by_name = {parts[-1].split(":")[0]: dataset for parts, dataset in found}
    wanted = [name for name in ("kernel", "recurrent_kernel", "bias") if name in by_name]
    return [np.asarray(by_name[name]) for name in wanted]


def _json(path: str, text: Any) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError, TypeError) as error:
        raise ValueError(f"{path}: expected JSON, got something else: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {_checks.described(value)}")
    return value


def _found_in(config: Any) -> Iterator[tuple[str, str, Any, Any]]:
    """Go through a model's configuration, in the order of its layers."""
    for name, class_name, of_layer, layer in _entries(config):
        if "layers" in of_layer:
            yield from _found_in(layer)
        else:
            yield from _layers_of_config(name, class_name, of_layer)


def _entries(config: Any) -> Iterator[tuple[str, str, Any, Any]]:
    """Give name, class and configuration of each layer of a model, and its whole entry."""
    inner = config.get("config") if isinstance(config, dict) else None
    layers = inner.get("layers") if isinstance(inner, dict) else inner  # Sequential's was a list
    for layer in layers if isinstance(layers, list) else [config]:
        of_layer = layer.get("config") if isinstance(layer, dict) else None
        if isinstance(of_layer, dict):
            name = str(layer.get("name") or of_layer.get("name"))
            yield name, str(layer.get("class_name")), of_layer, layer


def _groups_by_order(path: str, config: Any, group: Any) -> dict[str, Any]:
    """Find the groups of layers in files without names: by class, numbered from the second on."""
    found: dict[str, Any] = {}
    layers = _linked(path, group, "layers") if "layers" in group else {}
    counts: dict[str, int] = {}
    for name, class_name, of_layer, layer in _entries(config):
        key = re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", class_name)).lower()
        number = counts.get(key, 0)
        counts[key] = number + 1
        key = f"{key}_{number}" if number else key
        if key not in layers:
            continue
        inner = _linked(path, layers, key)
        found |= _groups_by_order(path, layer, inner) if "layers" in of_layer else {name: inner}
    return found


def _groups_by_name(path: str, group: Any) -> dict[str, Any]:
    """Find the groups of layers: each has one of its variables, which knows the layer's name."""
    found: dict[str, Any] = {}
    for key in group:
        inner = _linked(path, group, key)
        if hasattr(inner, "keys"):
            if "vars" in inner and "name" in inner["vars"].attrs:
                found.setdefault(str(inner["vars"].attrs["name"]), inner)
            found = _groups_by_name(path, inner) | found
    return found


def _variables(path: str, group: Any) -> list[Array]:
    """Read those of a layer's cell, in their order."""
    variables = group["cell"]["vars"]
    names = sorted(variables, key=int)
    return [np.asarray(_dataset(path, _linked(path, variables, name))) for name in names]


def _datasets(path: str, group: Any, parts: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key in group:
        inner = _linked(path, group, key)
        if hasattr(inner, "keys"):
            yield from _datasets(path, inner, (*parts, key))
        else:
            yield (*parts, key), _dataset(path, inner)


def _linked(path: str, group: Any, key: str) -> Any:
    """Return what stands there, but not by a link, which may lead into other files or in circles."""
    if type(group.get(key, getlink=True)).__name__ != "HardLink":
        raise ValueError(f"{path}: expected no links, got one at {_checks.shortened(key)}")
    return group[key]


def _dataset(path: str, dataset: Any) -> Any:
    """Refuse one whose numbers stand in other files, or that is much larger than its place in this one."""
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{path}: expected weights in the file, got some in another")
    stored = dataset.id.get_storage_size()
    if dataset.size * dataset.dtype.itemsize > _MOST_INFLATION * max(stored, 1):
        raise ValueError(f"{path}: expected weights that are stored, got {dataset.shape} in {stored} bytes")
    return dataset
