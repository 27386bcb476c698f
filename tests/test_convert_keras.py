"""from_keras: layers, models and files, against Keras on the same weights; CuDNN's layout; hostile files."""

from __future__ import annotations

import io
import json
import os
import zipfile

import numpy as np
import pytest

import gatedrnn as gr
from helpers import normal

pytestmark = [
    pytest.mark.peers,
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore"),  # its own, of the libraries under it
]
os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")

I, H = 5, 7  # noqa: E741 - as elsewhere
CASES = [
    ("LSTM", {}),
    ("LSTM", {"use_bias": False}),
    ("LSTM", {"activation": "relu", "recurrent_activation": "hard_sigmoid"}),
    ("LSTM", {"go_backwards": True}),
    ("GRU", {}),
    ("GRU", {"reset_after": False}),
    ("GRU", {"use_bias": False, "recurrent_activation": "hard_sigmoid"}),
    ("GRU", {"activation": "softsign"}),
    ("SimpleRNN", {}),
    ("SimpleRNN", {"activation": "relu"}),
    ("SimpleRNN", {"activation": "elu"}),
    ("SimpleRNN", {"activation": "leaky_relu"}),
    ("SimpleRNN", {"activation": None}),
]
cases = pytest.mark.parametrize(("name", "options"), CASES, ids=str)


def randomized(layer):
    rng = np.random.default_rng(0)
    layer.set_weights([rng.uniform(-0.5, 0.5, w.shape).astype(np.float32) for w in layer.get_weights()])
    return layer


def built(name, **options):
    layer = getattr(keras.layers, name)(H, return_sequences=True, name="it", **options)
    layer.build((None, None, I))
    return randomized(layer)


def values(layer, x):
    return keras.ops.convert_to_numpy(layer(x))


def agree(module, layer, x):
    expected = values(layer, x)
    if getattr(layer, "go_backwards", False):
        expected = expected[:, ::-1]
    np.testing.assert_allclose(module(x)[0], expected, rtol=0, atol=2e-6)


@cases
def test_layers(name, options):
    layer = built(name, **options)
    modules = gr.from_keras(layer)
    assert list(modules) == ["it"]
    agree(modules["it"], layer, normal((3, 6, I)))


@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave"])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "SimpleRNN"])
def test_both_directions(name, merge):
    inner = getattr(keras.layers, name)(H, return_sequences=True)
    layer = keras.layers.Bidirectional(inner, merge_mode=merge, name="both")
    layer.build((None, None, I))
    randomized(layer)
    module = gr.from_keras(layer)["both"]
    assert module.bidirectional
    agree(module, layer, normal((3, 6, I)))


@pytest.mark.parametrize("source", ["model", "m.keras", "m.h5"])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "SimpleRNN"])
def test_layers_made_of_a_cell(name, source, tmp_path):
    cell = getattr(keras.layers, f"{name}Cell")
    one = keras.layers.RNN(cell(H), return_sequences=True, go_backwards=True, name="one")
    both = keras.layers.Bidirectional(keras.layers.RNN(cell(4), return_sequences=True), name="both")
    stacked = keras.layers.RNN([cell(4), cell(5)], name="stacked")
    whole = randomized(keras.Sequential([keras.Input((None, I)), one, both, stacked]))
    given = whole
    if source != "model":
        given = tmp_path / source
        whole.save(given)
    modules = gr.from_keras(given)
    assert list(modules) == ["one", "both"]
    for layer in (one, both):
        module = modules[layer.name]
        agree(module, layer, normal((3, 6, module.input_size)))


def test_directions_that_are_not_merged():
    """Keras gives two outputs; ours stand side by side."""
    inner = keras.layers.GRU(H, return_sequences=True)
    layer = keras.layers.Bidirectional(inner, merge_mode=None, name="both")
    layer.build((None, None, I))
    randomized(layer)
    x = normal((3, 6, I))
    outputs = [np.asarray(keras.ops.convert_to_numpy(y)) for y in layer(x)]
    (module,) = gr.from_keras(layer).values()
    np.testing.assert_allclose(module(x)[0], np.concatenate(outputs, axis=2), rtol=0, atol=2e-6)


def model():
    x = inputs = keras.Input((None, I))
    x = keras.layers.Masking()(x)
    x = keras.layers.LSTM(H, return_sequences=True, name="first")(x)
    both = keras.layers.Bidirectional(
        keras.layers.GRU(4, return_sequences=True, reset_after=False), merge_mode="sum", name="both"
    )
    x = keras.layers.Dropout(0.5)(both(x))
    inner = keras.Sequential([keras.layers.LSTM(3, return_sequences=True, name="within")], name="inner")
    x = inner(x)
    x = keras.layers.SimpleRNN(6, name="last")(x)
    return randomized(keras.Model(inputs, keras.layers.Dense(2)(x)))


SIZES = {"first": (I, H), "both": (H, 4), "within": (4, 3), "last": (3, 6)}


@pytest.mark.parametrize("source", ["model", "m.keras", "m.h5"])
def test_models_and_files(source, tmp_path):
    whole = model()
    given = whole
    if source != "model":
        given = tmp_path / source
        whole.save(given)
    modules = gr.from_keras(given)
    assert {name: (m.input_size, m.hidden_size) for name, m in modules.items()} == SIZES
    assert list(modules) == list(SIZES)
    for name, layer in {"first": whole.get_layer("first"), "both": whole.get_layer("both")}.items():
        agree(modules[name], layer, normal((3, 6, modules[name].input_size)))
    within = whole.get_layer("inner").get_layer("within")
    agree(modules["within"], within, normal((3, 6, 4)))
    x = normal((3, 6, 3))
    last = values(whole.get_layer("last"), x)
    np.testing.assert_allclose(modules["last"](x)[0][:, -1], last, rtol=0, atol=2e-6)


def test_files_before_names_stood_in_them(tmp_path):
    """Those of Keras 3.0: layers by class and number."""
    model().save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    content = io.BytesIO(parts["model.weights.h5"])
    with h5py.File(content, "a") as file:
        file.visititems(lambda _, item: item.attrs.pop("name", None) and None)
    parts["model.weights.h5"] = content.getvalue()
    with zipfile.ZipFile(tmp_path / "old.keras", "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    new, old = (gr.from_keras(tmp_path / name) for name in ("m.keras", "old.keras"))
    assert list(old) == list(SIZES)
    for name, module in new.items():
        for key, value in module.state_dict().items():
            np.testing.assert_array_equal(old[name].state_dict()[key], value)


def test_a_sequential_file(tmp_path):
    whole = keras.Sequential([keras.Input((None, I)), keras.layers.GRU(H, name="it")])
    whole.save(tmp_path / "m.keras")
    x = normal((3, 6, I))
    module = gr.from_keras(tmp_path / "m.keras")["it"]
    np.testing.assert_allclose(module(x)[0][:, -1], values(whole, x), rtol=0, atol=2e-6)


# --- files of Keras 2 -----------------------------------------------------------------------------


def write_hdf5(path, layers, version="2.4.0"):
    """A file as Keras 2 wrote it: layers are (class, name, config, weights by name in the file)."""
    config = {
        "class_name": "Sequential",
        "config": {
            "name": "sequential",
            "layers": [
                {"class_name": kind, "config": {"name": name, **config}} for kind, name, config, _ in layers
            ],
        },
    }
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = version
        for _, name, _, weights in layers:
            for key, value in weights.items():
                file[f"model_weights/{name}/{key}"] = value


def weights_of(gates, bias_shape):
    rng = np.random.default_rng(0)
    shapes = {"kernel:0": (I, gates * H), "recurrent_kernel:0": (H, gates * H), "bias:0": bias_shape}
    return {key: rng.uniform(-0.5, 0.5, shape).astype(np.float32) for key, shape in shapes.items()}


def test_hard_sigmoid_is_that_of_the_files_version(tmp_path):
    config = {"units": H, "activation": "tanh", "recurrent_activation": "hard_sigmoid"}
    weights = {f"lstm/lstm_cell/{key}": value for key, value in weights_of(4, 4 * H).items()}
    for version, slope in {"2.4.0": 0.2, "2.2.4-tf": 0.2, "3.1.0": 1 / 6}.items():
        write_hdf5(tmp_path / "m.h5", [("LSTM", "lstm", config, weights)], version)
        activations = gr.from_keras(tmp_path / "m.h5")["lstm"].activations
        assert activations["i"] == ("hard_sigmoid", slope, 0.5)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("class_name", ["CuDNNLSTM", "LSTM"])
def test_cudnn_lstm(class_name, tmp_path):
    """Each gate's kernel is the memory of (H, I), in CuDNN's own equations; by its class, or its bias."""
    weights = weights_of(4, 8 * H)
    write_hdf5(tmp_path / "m.h5", [(class_name, "it", {"units": H}, weights)])
    x = normal((3, 6, I)).astype(np.float64)
    kernels = [k.reshape(H, I) for k in np.split(weights["kernel:0"], 4, axis=1)]
    recurrent = np.split(weights["recurrent_kernel:0"], 4, axis=1)
    biases = np.split(weights["bias:0"], 8)
    h = c = np.zeros((3, H))
    for t in range(6):
        i, f, g, o = (
            x[:, t] @ kernels[n].T + h @ recurrent[n].T + biases[n] + biases[4 + n] for n in range(4)
        )
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    module = gr.from_keras(tmp_path / "m.h5")["it"]
    np.testing.assert_allclose(module(x.astype(np.float32))[0][:, -1], h, rtol=0, atol=1e-5)


def test_cudnn_gru(tmp_path):
    weights = weights_of(3, 6 * H)
    write_hdf5(tmp_path / "m.h5", [("CuDNNGRU", "it", {"units": H}, weights)])
    x = normal((3, 6, I)).astype(np.float64)
    kernels = [k.reshape(H, I) for k in np.split(weights["kernel:0"], 3, axis=1)]
    recurrent = np.split(weights["recurrent_kernel:0"], 3, axis=1)
    b = np.split(weights["bias:0"], 6)
    h = np.zeros((3, H))
    for t in range(6):
        of_x = [x[:, t] @ kernels[n].T + b[n] for n in range(3)]
        of_h = [h @ recurrent[n].T + b[3 + n] for n in range(3)]
        z, r = sigmoid(of_x[0] + of_h[0]), sigmoid(of_x[1] + of_h[1])
        h = z * h + (1 - z) * np.tanh(of_x[2] + r * of_h[2])
    module = gr.from_keras(tmp_path / "m.h5")["it"]
    assert module.reset_after
    np.testing.assert_allclose(module(x.astype(np.float32))[0][:, -1], h, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("gates", "kind"), [(4, "LSTM"), (3, "GRU")])
def test_weights_alone_of_cudnn(gates, kind, tmp_path):
    """They say by their layout what they are."""
    weights = weights_of(gates, 2 * gates * H)
    write_hdf5(tmp_path / "whole.h5", [(f"CuDNN{kind}", "rnn_1", {"units": H}, weights)])
    with h5py.File(tmp_path / "alone.h5", "w") as file:
        file.attrs["keras_version"] = "2.1.5"
        file["embedding/embedding/embeddings:0"] = normal((3, I))
        for key, value in weights.items():
            file[f"rnn_1/rnn_1/{key}"] = value
    (module,) = gr.from_keras(tmp_path / "whole.h5").values()
    alone = gr.from_keras(tmp_path / "alone.h5")
    assert list(alone) == ["rnn_1"]
    x = normal((3, 6, I))
    np.testing.assert_array_equal(alone["rnn_1"](x)[0], module(x)[0])


@pytest.mark.parametrize("group", ["rnn_1/rnn_1", "bidirectional_1/forward_lstm_1"])
def test_weights_alone_that_do_not_say_what_they_are(group, tmp_path):
    weights = weights_of(4, 8 * H if "forward" in group else 4 * H)
    with h5py.File(tmp_path / "alone.h5", "w") as file:
        for key, value in weights.items():
            file[f"{group}/{key}"] = value
    name = group.split("/")[0]
    expected = f"expected a whole model, with its configuration, .* got the weights alone of '{name}'"
    with pytest.raises(ValueError, match=expected):
        gr.from_keras(tmp_path / "alone.h5")


# --- what cannot be read --------------------------------------------------------------------------


def bad_file(tmp_path, config=(), change=None, kind="LSTM", **shapes):
    weights = weights_of(4, 4 * H) | {f"{k}:0": np.zeros(s, np.float32) for k, s in shapes.items()}
    if change is not None:
        change(weights)
    write_hdf5(tmp_path / "m.h5", [(kind, "it", {"units": H, **dict(config)}, weights)])
    return tmp_path / "m.h5"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": {"activation": "gelu"}}, "expected an activation of tanh, .*, got 'gelu'"),
        ({"config": {"activation": {"class_name": "Custom"}}}, "expected an activation of .*, got 'Custom'"),
        ({"config": {"units": "7"}}, "expected a number of units, got '7'"),
        ({"config": {"units": 8}}, r"expected a kernel of \(None, 32\), got shape \(5, 28\)"),
        ({"recurrent_kernel": (6, 28)}, r"expected a recurrent kernel of \(7, 28\), got shape \(6, 28\)"),
        ({"bias": (27,)}, r"expected a bias of \(28,\), got shape \(27,\)"),
        ({"kernel": (28,)}, "expected a kernel"),
        (
            {"change": lambda w: w.update({"kernel:0": np.zeros((5, 28), int)})},
            "expected floating-point numbers",
        ),
        ({"change": lambda w: w["bias:0"].fill(np.nan)}, "bias_ih_l0: expected finite numbers"),
        (
            {"change": lambda w: [w.pop(key) for key in list(w)[1:]]},
            "expected a kernel, a recurrent kernel, perhaps a bias, got 1 weights",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_layers_that_do_not_fit(options, message, tmp_path):
    with pytest.raises(ValueError, match=message) as raised:
        gr.from_keras(bad_file(tmp_path, **options))
    assert str(raised.value).startswith("LSTM 'it': ")


def test_what_is_none_of_these():
    with pytest.raises(TypeError, match="source: expected a layer or model of Keras, or a path, got 3"):
        gr.from_keras(3)
    layer = keras.layers.Bidirectional(keras.layers.LSTM(H, return_sequences=True))
    layer.build((None, None, I))
    layer.merge_mode = "max"
    with pytest.raises(ValueError, match="expected a merge_mode of 'concat', 'sum', 'mul', 'ave', got 'max'"):
        gr.from_keras(layer)
    other = keras.layers.Bidirectional(
        keras.layers.LSTM(H), backward_layer=keras.layers.LSTM(H, activation="relu", go_backwards=True)
    )
    other.build((None, None, I))
    with pytest.raises(ValueError, match="expected layers of the same kind in both directions"):
        gr.from_keras(other)


def test_broken_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        gr.from_keras(tmp_path / "none.keras")
    model().save(tmp_path / "m.keras")
    content = (tmp_path / "m.keras").read_bytes()
    hdf5 = bad_file(tmp_path).read_bytes()
    for broken in (b"", b"text", content[:-300], content[:200], hdf5[:600], hdf5[:-200]):
        (tmp_path / "bad").write_bytes(broken)
        with pytest.raises(ValueError, match=r"bad: expected|'it': expected"):
            gr.from_keras(tmp_path / "bad")


def archive(path, **parts):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, value in parts.items():
            file.writestr(name.replace("__", "."), value)


def test_archives_that_lie(tmp_path):
    layer = {"class_name": "LSTM", "config": {"name": "it", "units": H}}
    config = json.dumps({"class_name": "Sequential", "config": {"layers": [layer]}})
    metadata = json.dumps({"keras_version": "3.0.0"})
    path = tmp_path / "m.keras"
    archive(path, config__json=config, metadata__json=metadata)
    with pytest.raises(ValueError, match=r"expected a \.keras or HDF5 file of Keras"):
        gr.from_keras(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("config.json", config)
        file.writestr("metadata.json", metadata)
        file.writestr("model.weights.h5", bytes(50_000_000))
    with pytest.raises(ValueError, match=r"expected a model\.weights\.h5 not much larger than the file"):
        gr.from_keras(path)
    archive(path, config__json="[" * 100_000, metadata__json=metadata)
    with pytest.raises(ValueError, match="expected"):
        gr.from_keras(path)
    empty = io.BytesIO()
    h5py.File(empty, "w").close()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", config)
        file.writestr("metadata.json", metadata)
        file.writestr("model.weights.h5", empty.getvalue())
    with pytest.raises(ValueError, match="expected weights of the layer 'it', got none"):
        gr.from_keras(path)


def test_nothing_is_read_outside_the_file(tmp_path):
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["kernel"] = np.zeros((I, 4 * H), np.float32)
    path = bad_file(tmp_path)
    with h5py.File(path, "a") as file:
        del file["model_weights/it/kernel:0"]
        file["model_weights/it/kernel:0"] = h5py.ExternalLink("other.h5", "kernel")
    with pytest.raises(ValueError, match="expected no links, got one at 'kernel:0'"):
        gr.from_keras(path)
    path = bad_file(tmp_path)
    with h5py.File(path, "a") as file:
        file["model_weights/it/again"] = h5py.SoftLink("/model_weights")
    with pytest.raises(ValueError, match="expected no links, got one at 'again'"):
        gr.from_keras(path)
    (tmp_path / "secret").write_bytes(bytes(4 * I * 4 * H))
    path = bad_file(tmp_path)
    with h5py.File(path, "a") as file:
        del file["model_weights/it/kernel:0"]
        file["model_weights/it"].create_dataset(
            "kernel:0", (I, 4 * H), "f4", external=[(str(tmp_path / "secret"), 0, 4 * I * 4 * H)]
        )
    with pytest.raises(ValueError, match="expected weights in the file, got some in another"):
        gr.from_keras(path)


def test_sizes_that_are_not_there(tmp_path):
    path = bad_file(tmp_path)
    with h5py.File(path, "a") as file:
        del file["model_weights/it/kernel:0"]
        file["model_weights/it"].create_dataset("kernel:0", (1 << 30, 4 * H), "f4", chunks=(1024, 4 * H))
    with pytest.raises(ValueError, match="expected weights that are stored"):
        gr.from_keras(path)
    with h5py.File(path, "a") as file:
        file.attrs.pop("model_config")
    with pytest.raises(ValueError, match="expected weights that are stored"):
        gr.from_keras(path)
