"""gatedrnn.convert: gates in every order, files of parameters alone, and hostile ones."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import gatedrnn as gr
from gatedrnn.convert import _verify, reorder
from helpers import assert_same_bits, build, normal

SIZES = {"i": 1, "f": 2, "g": 3, "o": 4, "r": 5, "z": 6, "n": 7}


def stacked(order, rows=3, columns=2):
    """A matrix whose gates have the numbers of SIZES."""
    blocks = [np.full((rows, columns), SIZES[letter], np.float32) for letter in order]
    blocks = [block + np.arange(rows)[:, None] / 10 for block in blocks]
    return np.concatenate(blocks)


# --- reorder --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ours", ["ifgo", "igo", "rzn"])
def test_every_order(ours):
    for theirs in map("".join, itertools.permutations(ours)):
        assert_same_bits(reorder(stacked(theirs), gates=theirs), stacked(ours))
        columns = np.ascontiguousarray(stacked(theirs).T)
        assert_same_bits(reorder(columns, gates=theirs.upper(), layout="columns"), stacked(ours))
        bias = stacked(theirs)[:, 0]
        assert_same_bits(reorder(bias, gates=theirs, layout="columns"), stacked(ours)[:, 0])


def test_other_letters_for_the_same_gates():
    assert_same_bits(reorder(stacked("iogf"), gates="iocf"), stacked("ifgo"))
    assert_same_bits(reorder(stacked("zrn"), gates="urc"), stacked("rzn"))
    assert_same_bits(reorder(stacked("zrn"), gates="zrh"), stacked("rzn"))


def test_an_update_gate_of_the_other_sense():
    """h' = (1 - z) h + z n, by its own equations."""
    rng = np.random.default_rng(0)
    ih, hh, b_ih, b_hh = (rng.standard_normal(s) for s in ((15, 3), (15, 5), 15, 15))
    module = gr.GRU(3, 5, dtype=np.float64)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    weights = zip(names, (ih, hh, b_ih, b_hh), strict=True)
    module.load_state_dict({name: reorder(value, gates="rzn", z="new") for name, value in weights})
    x, h = rng.standard_normal((2, 3)), rng.standard_normal((2, 5))
    (x_r, x_z, x_n), (h_r, h_z, h_n) = (
        np.split(value @ w.T + b, 3, axis=1) for value, w, b in ((x, ih, b_ih), (h, hh, b_hh))
    )
    r, z = (1 / (1 + np.exp(-a)) for a in (x_r + h_r, x_z + h_z))
    expected = (1 - z) * h + z * np.tanh(x_n + r * h_n)
    np.testing.assert_allclose(module(x[None], h[None])[0][0], expected, rtol=0, atol=1e-13)


def test_the_result_is_a_copy():
    weights = stacked("ifgo")
    reorder(weights, gates="ifgo")[:] = 0
    assert weights.any()
    assert reorder(weights.astype(np.float16), gates="ifgo").dtype == np.float16
    assert reorder(weights.tolist(), gates="ifgo").dtype == np.float64


BAD_ORDERS = [
    ({"gates": "ifg"}, ValueError, "gates: expected the letters i, f, g, o, or i, g, o, or r, z, n"),
    ({"gates": "iifo"}, ValueError, "gates: expected the letters"),
    ({"gates": 4}, TypeError, "gates: expected letters such as 'ifgo' or 'zrh', got 4"),
    ({"gates": "ifgo", "layout": "col"}, ValueError, "layout: expected 'rows' or 'columns', got 'col'"),
    ({"gates": "ifgo", "z": "new"}, ValueError, "z: expected 'old' for gates without an update gate"),
    ({"gates": "rzn", "z": "older"}, ValueError, "z: expected 'old' or 'new', got 'older'"),
    ({"gates": "rzn"}, ValueError, r"weights: expected a multiple of 3 rows, got shape \(8, 2\)"),
    ({"gates": "rzn", "layout": "columns"}, ValueError, "weights: expected a multiple of 3 columns"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_ORDERS, ids=str)
def test_bad_orders(options, error, message):
    with pytest.raises(error, match=message):
        reorder(np.zeros((8, 2), np.float32), **options)


@pytest.mark.parametrize(
    ("weights", "error"),
    [
        (np.zeros((8, 2), int), TypeError),
        ("abc", TypeError),
        (np.zeros((2, 4, 2)), ValueError),
        (None, TypeError),
    ],
    ids=str,
)
def test_bad_weights(weights, error):
    with pytest.raises(error, match="weights: expected"):
        reorder(weights, gates="ifgo")


# --- files ----------------------------------------------------------------------------------------

MODULES = {
    "lstm": (gr.LSTM, {"num_layers": 2, "bidirectional": True}),
    "lstm_projected": (gr.LSTM, {"proj_size": 3, "bias": False}),
    "lstm_peephole": (gr.LSTM, {"peephole": True}),
    "lstm_coupled": (gr.LSTM, {"coupled": True, "peephole": True}),
    "lstm_norm": (gr.LSTM, {"layer_norm": "products"}),
    "lstm_norm_gates": (gr.LSTM, {"layer_norm": "gates", "learn_state": True}),
    "gru": (gr.GRU, {"num_layers": 3}),
    "rnn": (gr.RNN, {"bidirectional": True}),
    "lstm_cell": (gr.LSTMCell, {}),
    "gru_cell": (gr.GRUCell, {"bias": False}),
    "rnn_cell": (gr.RNNCell, {}),
}


def module_named(name, dtype=np.float32):
    constructor, options = MODULES[name]
    return constructor(5, 7, seed=3, dtype=dtype, **options)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sizes_are_read_from_the_parameters(name, dtype, tmp_path):
    module = module_named(name, dtype)
    for prefix in ("", "encoder.rnn."):
        tensors = {prefix + key: value for key, value in module.state_dict().items()}
        save_file(tensors | {"embedding.weight": np.zeros((9, 5), np.float32)}, tmp_path / "m.safetensors")
        for given in (prefix, prefix[:-1], ""):  # with its dot, without, and found
            loaded = gr.load_parameters(tmp_path / "m.safetensors", given)
            assert repr(loaded) == repr(module)
            for key, value in module.state_dict().items():
                assert_same_bits(loaded.state_dict()[key], value)


def test_options_that_parameters_do_not_tell(tmp_path):
    gru = build("gru_reset_before")
    save_file(gru.state_dict(), tmp_path / "m.safetensors")
    loaded = gr.load_parameters(tmp_path / "m.safetensors", reset_after=False, batch_first=True, dropout=0.0)
    x = normal((4, 2, 5))
    assert_same_bits(loaded(x.swapaxes(0, 1))[0].swapaxes(0, 1), gru(x)[0])
    coupled = gr.LSTM(5, 7, coupled=True)
    save_file(coupled.state_dict(), tmp_path / "m.safetensors")
    assert type(gr.load_parameters(tmp_path / "m.safetensors")) is gr.GRU  # by its shapes it could be one
    assert gr.load_parameters(tmp_path / "m.safetensors", coupled=True).coupled
    relu = build("rnn_relu")
    save_file(relu.state_dict(), tmp_path / "m.safetensors")
    assert_same_bits(gr.load_parameters(tmp_path / "m.safetensors", nonlinearity="relu")(x), relu(x))


def test_halves_become_float32(tmp_path):
    """bfloat16, which NumPy has not, too: here from the bytes that safetensors has of it."""
    module = build("gru")
    tensors = {}
    for name, value in module.state_dict().items():
        tensors[name] = value.astype(np.float16)
    save_file(tensors, tmp_path / "half.safetensors")
    loaded = gr.load_parameters(tmp_path / "half.safetensors")
    assert loaded.dtype == np.float32
    assert_same_bits(loaded.weight_ih_l0.astype(np.float16), tensors["weight_ih_l0"])

    header, data = {}, b""
    for name, value in module.state_dict().items():
        content = (value.view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {
            "dtype": "BF16",
            "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    text = json.dumps(header).encode()
    (tmp_path / "bfloat16.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    loaded = gr.load_parameters(tmp_path / "bfloat16.safetensors")
    expected = module.weight_ih_l0.view(np.uint32) >> 16 << 16
    assert_same_bits(loaded.weight_ih_l0, expected.view(np.float32))


def test_which_prefixes_there_are(tmp_path):
    tensors = {
        f"{prefix}.{key}": value
        for prefix in ("encoder.rnn", "decoder")
        for key, value in build("lstm").state_dict().items()
    }
    save_file(tensors, tmp_path / "m.safetensors")
    for prefix in ("", "rnn."):
        with pytest.raises(ValueError, match="prefix: expected") as raised:
            gr.load_parameters(tmp_path / "m.safetensors", prefix)
        assert str(raised.value) == f"prefix: expected one of 'decoder.', 'encoder.rnn.', got {prefix!r}"


def edited(change):
    """The parameters of an LSTM, with something wrong."""
    state = build("lstm").state_dict()
    change(state)
    return state


def put(name, value):
    return lambda state: state.update({name: value})


def drop(name):
    return lambda state: state.pop(name)


def nan(state):
    state["bias_ih_l0"][3] = np.nan


ZEROS = np.zeros((28, 7), np.float32)
BROKEN = [
    (drop("weight_ih_l0"), "expected a matrix weight_ih_l0, got none"),
    (drop("bias_hh_l0"), "missing ['bias_hh_l0']"),
    (put("weight_ih_l0", ZEROS[:27, :5].copy()), "wrong shapes of ['weight_ih_l0']"),
    (put("weight_hh_l0", ZEROS[:27].copy()), "expected 1, 3 or 4 times 7 rows in weight_hh_l0"),
    (put("weight_hh_l0", ZEROS[:, :0].copy()), "expected a matrix weight_hh_l0, got (28, 0)"),
    (put("weight_hh_l0", ZEROS.reshape(4, 7, 7)), "expected a matrix weight_hh_l0, got (4, 7, 7)"),
    (put("weight_hr_l0", ZEROS[0].copy()), "expected a matrix weight_hr_l0, got (7,)"),
    (put("weight_ih_l7", ZEROS), "missing ['bias_hh_l1'"),
    (put("weight_ih_l0", np.zeros((28, 5), np.int64)), "weight_ih_l0: expected floating-point numbers"),
    (nan, "bias_ih_l0: expected finite numbers, got some that are not"),
    (lambda state: state.clear(), "expected parameters of an LSTM, GRU or RNN by torch.nn's names, got none"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_broken_parameters(change, message, tmp_path):
    save_file(edited(change), tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="safetensors: ") as raised:
        gr.load_parameters(tmp_path / "m.safetensors")
    assert message in str(raised.value)
    assert len(str(raised.value)) < 600


def test_broken_files(tmp_path):
    good = tmp_path / "m.safetensors"
    save_file(build("lstm").state_dict(), good)
    content = good.read_bytes()
    bad = tmp_path / "bad.safetensors"
    for broken in (
        b"",
        b"text",
        content[:100],
        content[:-1],
        content + b"0",
        b"\xff" * 8 + content[8:],
        (1 << 62).to_bytes(8, "little") + content[8:],
        content[:8] + b"{" * 900,
    ):
        bad.write_bytes(broken)
        with pytest.raises(ValueError, match="expected safetensors"):
            gr.load_parameters(bad)
    with pytest.raises(FileNotFoundError):
        gr.load_parameters(tmp_path / "none")
    with pytest.raises(TypeError, match="path: expected"):
        gr.load_parameters(3)
    with pytest.raises(TypeError, match="prefix: expected a str, got None"):
        gr.load_parameters(good, None)
    with pytest.raises(ValueError, match="hidden_size: expected none, since it is read from the parameters"):
        gr.load_parameters(good, hidden_size=7)
    with pytest.raises(TypeError, match="reset_after"):
        gr.load_parameters(good, reset_after=True)


def test_a_wrong_conversion_is_seen():
    module = build("lstm", dtype=np.float64)
    values = module.state_dict()
    _verify.verify("module", module, _verify.torch_source("LSTM", values))
    values["weight_hh_l0"] = values["weight_hh_l0"].copy()
    values["weight_hh_l0"][3, 4] += 1e-6
    with pytest.raises(
        RuntimeError, match="module: the converted module's output differs from the source's by"
    ):
        _verify.verify("module", module, _verify.torch_source("LSTM", values))
