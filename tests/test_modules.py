"""Modules as objects: construction, parameters, state dictionaries, files, copies."""

from __future__ import annotations

import copy
import itertools
import json
import os
import pickle
import struct

import numpy as np
import pytest

import gatedrnn as gr
from gatedrnn import _core
from helpers import CELLS, CLASSES, DTYPES, assert_same_bits, build, normal
from test_errors import INTERNAL, refused

cells = pytest.mark.parametrize("cell", CELLS)
# Gates, and those that peepholes lead to.
GATES = {
    "lstm": (4, ""),
    "lstm_peephole": (4, "ifo"),
    "lstm_coupled": (3, ""),
    "lstm_coupled_peephole": (3, "io"),
    "gru": (3, ""),
    "gru_reset_before": (3, ""),
    "rnn_tanh": (1, ""),
    "rnn_relu": (1, ""),
}
WIDTH, H = 5, 7


# --- construction ---------------------------------------------------------------------------------

SIZES = [0, -1, 2.5, 3.0, "5", None, True, [5], np.array([5]), 2**40, 2**70, np.nan]
FLAGS = [1, 0, "yes", None, [], np.array([True, False])]
BAD_OPTIONS = {
    "input_size": SIZES,
    "hidden_size": SIZES,
    "num_layers": SIZES,
    "bias": FLAGS,
    "batch_first": FLAGS,
    "bidirectional": FLAGS,
    "direction": ["backward", "", None, 1, True, ["reverse"]],
    "merge": ["sum", "ave", "", None, 2],  # the first without two directions
    "learn_state": FLAGS,
    "dropout": [-0.1, 1.1, np.nan, np.inf, "0.5", None, True, [0.5], 1j],
    "dtype": [
        None,
        "int32",
        np.int64,
        np.float16,
        np.complex64,
        "no such type",
        object,
        3,
        ">f4",
        np.longdouble,
        bool,
    ],
    "seed": [-1, 1.5, "1", True, [1]],
}
BAD_OWN_OPTIONS = {
    "lstm": {"proj_size": [-1, H, H + 1, 2.5, "3", None, True, 2**70], "peephole": FLAGS, "coupled": FLAGS},
    "gru": {"reset_after": FLAGS},
    "rnn_tanh": {"nonlinearity": ["sigmoid", "TANH", "", None, 3, ["tanh"]]},
}


def cases(options):
    return [
        pytest.param(name, value, id=f"{name}-{value!r:.20}")
        for name, values in options.items()
        for value in values
    ]


def check_refusal(constructor, name, value):
    with pytest.raises((ValueError, TypeError)) as caught:
        constructor(**{"input_size": WIDTH, "hidden_size": H, name: value})
    message = str(caught.value)
    assert name in message
    assert "expected" in message
    assert not INTERNAL.search(message)


@pytest.mark.parametrize("constructor", [gr.LSTM, gr.GRU, gr.RNN])
@pytest.mark.parametrize(("name", "value"), cases(BAD_OPTIONS))
def test_bad_option(constructor, name, value):
    check_refusal(constructor, name, value)


@pytest.mark.parametrize(
    ("cell", "name", "value"),
    [
        pytest.param(c, *p.values, id=f"{c}-{p.id}")
        for c, options in BAD_OWN_OPTIONS.items()
        for p in cases(options)
    ],
)
def test_bad_own_option(cell, name, value):
    check_refusal(CLASSES[cell][0], name, value)


def test_options_of_other_classes():
    for call in (
        lambda: gr.GRU(WIDTH, H, proj_size=3),
        lambda: gr.GRU(WIDTH, H, peephole=True),
        lambda: gr.LSTM(WIDTH, H, reset_after=True),
        lambda: gr.RNN(WIDTH, H, proj_size=3),
        lambda: gr.LSTM(WIDTH),
        lambda: gr.LSTM(),
    ):
        with pytest.raises(TypeError):
            call()


@cells
def test_attributes_say_what_was_asked(cell):
    constructor, own = CLASSES[cell]
    options = {
        "num_layers": 2,
        "bias": False,
        "batch_first": True,
        "dropout": 0.25,
        "bidirectional": True,
        "dtype": np.dtype(np.float64),
    } | own
    module = constructor(np.int64(WIDTH), H, **options)
    for name, value in ({"input_size": WIDTH, "hidden_size": H} | options).items():
        assert getattr(module, name) == value
        with pytest.raises(AttributeError):
            setattr(module, name, value)
    with pytest.raises(AttributeError):
        module.hiden_size = 3  # a typing error makes no new attribute


def test_order_of_arguments_is_torchs():
    """What may be given by place, in torch.nn's order."""
    lstm = gr.LSTM(WIDTH, H, 2, False, True, 0.5, True, 3)
    assert (lstm.num_layers, lstm.bias, lstm.batch_first, lstm.dropout) == (2, False, True, 0.5)
    assert (lstm.bidirectional, lstm.proj_size) == (True, 3)
    gru = gr.GRU(WIDTH, H, 2, False, True, 0.5, True)
    assert (gru.num_layers, gru.bias, gru.batch_first, gru.dropout, gru.bidirectional) == (
        2,
        False,
        True,
        0.5,
        True,
    )
    rnn = gr.RNN(WIDTH, H, 2, "relu", False, True, 0.5, True)
    assert (rnn.num_layers, rnn.nonlinearity, rnn.bias, rnn.batch_first) == (2, "relu", False, True)
    with pytest.raises(TypeError):
        gr.GRU(WIDTH, H, 2, False, True, 0.5, True, False)


@pytest.mark.parametrize("dtype", [np.float32, "float32", np.dtype("f4"), "f", np.float64, float, "d"])
def test_kinds_of_dtype(dtype):
    assert gr.GRU(WIDTH, H, dtype=dtype).dtype == np.dtype(dtype)
    assert gr.GRU(WIDTH, H, dtype=dtype).state_dict()["weight_ih_l0"].dtype == np.dtype(dtype)


@cells
def test_repr(cell):
    constructor, own = CLASSES[cell]
    text = repr(constructor(WIDTH, H, num_layers=2, bidirectional=True, **own))
    assert text.startswith(f"{constructor.__name__}({WIDTH}, {H}")
    assert "num_layers=2" in text
    assert "bidirectional=True" in text
    for name, value in own.items():
        assert f"{name}={value!r}" in text


@cells
def test_seed(cell):
    constructor, own = CLASSES[cell]
    first, again, other, unseeded = (
        constructor(WIDTH, H, seed=seed, **own).state_dict() for seed in (1, 1, 2, None)
    )
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])
        assert not np.array_equal(value, other[name])
        assert not np.array_equal(value, unseeded[name])


@cells
@pytest.mark.parametrize("dtype", DTYPES)
def test_initial_weights_are_uniform(cell, dtype):
    """As in torch: in +-1/sqrt(H), filling it evenly."""
    constructor, own = CLASSES[cell]
    values = constructor(64, 64, seed=0, dtype=dtype, **own).state_dict()
    everything = np.concatenate([v.ravel() for v in values.values()]) * 8
    assert np.abs(everything).max() <= 1
    deviation = 1 / np.sqrt(everything.size)  # of the mean of so many, generously
    assert abs(everything.mean()) <= 4 * deviation
    assert abs(np.square(everything).mean() - 1 / 3) <= 4 * deviation


# --- state dictionaries ---------------------------------------------------------------------------


def expected_shapes(gates, peepholes, layers, bidirectional, bias, proj_size):
    """torch.nn's rule: layer by layer, direction by direction; our peepholes come last."""
    shapes = {}
    width = (proj_size or H) * (1 + bidirectional)
    for layer, suffix in itertools.product(range(layers), ["", "_reverse"][: 1 + bidirectional]):
        end = f"_l{layer}{suffix}"
        shapes["weight_ih" + end] = (gates * H, width if layer else WIDTH)
        shapes["weight_hh" + end] = (gates * H, proj_size or H)
        if bias:
            shapes["bias_ih" + end] = shapes["bias_hh" + end] = (gates * H,)
        if proj_size:
            shapes["weight_hr" + end] = (proj_size, H)
        shapes |= {f"weight_c{gate}{end}": (H,) for gate in peepholes}
    return shapes


@cells
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("proj_size", [0, 3])
def test_names_shapes_and_order(cell, layers, bidirectional, bias, proj_size):
    constructor, own = CLASSES[cell]
    options = {"num_layers": layers, "bidirectional": bidirectional, "bias": bias} | own
    if proj_size:
        if constructor is not gr.LSTM:
            proj_size = 0
        else:
            options["proj_size"] = proj_size
    module = constructor(WIDTH, H, **options)
    expected = expected_shapes(*GATES[cell], layers, bidirectional, bias, proj_size)
    assert [(k, v.shape) for k, v in module.state_dict().items()] == list(expected.items())
    assert [(k, v.shape) for k, v in module.parameters().items()] == list(expected.items())


def test_names_in_full():
    assert list(gr.LSTM(WIDTH, H, bidirectional=True, proj_size=3, peephole=True).state_dict()) == [
        "weight_ih_l0",
        "weight_hh_l0",
        "bias_ih_l0",
        "bias_hh_l0",
        "weight_hr_l0",
        "weight_ci_l0",
        "weight_cf_l0",
        "weight_co_l0",
        "weight_ih_l0_reverse",
        "weight_hh_l0_reverse",
        "bias_ih_l0_reverse",
        "bias_hh_l0_reverse",
        "weight_hr_l0_reverse",
        "weight_ci_l0_reverse",
        "weight_cf_l0_reverse",
        "weight_co_l0_reverse",
    ]


@cells
def test_state_dict_is_a_copy(cell):
    module = build(cell)
    x = normal((4, 3, WIDTH))
    before = module(x)
    values = module.state_dict()
    for value in values.values():
        value[...] = 9
    assert_same_bits(module(x), before)
    module.load_state_dict(values)
    for value in values.values():
        value[...] = 8
    assert all((v == 9).all() for v in module.state_dict().values())


@cells
@pytest.mark.parametrize("dtype", DTYPES)
def test_load_state_dict(cell, dtype):
    """Round trips, and whatever float type and layout the values have."""
    source, target = build(cell, seed=1), build(cell, seed=2, dtype=dtype)
    x = normal((4, 3, WIDTH), dtype=dtype)
    target.load_state_dict(source.state_dict())
    expected = target(x)
    for change in (np.asfortranarray, lambda v: v[::-1].copy()[::-1], lambda v: v.astype(np.float64)):
        target = build(cell, seed=2, dtype=dtype)
        target.load_state_dict({k: change(v) for k, v in source.state_dict().items()})
        assert_same_bits(target(x), expected)


BAD_VALUES = {
    "none": None,
    "text": "text",
    "number": 1.0,
    "shape": np.zeros((3, 3), np.float32),
    "transposed": np.zeros((H, 3 * H), np.float32).T[:, :H].T,
    "empty": np.zeros((0,), np.float32),
    "flattened": np.zeros(3 * H * H, np.float32),
    "integers": np.zeros((3 * H, H), np.int64),
    "complex": np.zeros((3 * H, H), np.complex64),
    "objects": np.zeros((3 * H, H), object),
    "list": [[0.0] * H] * (3 * H),
    "beyond float32": np.full((3 * H, H), 1e300),
}


@pytest.mark.parametrize("bad", BAD_VALUES)
def test_bad_value_changes_nothing(bad):
    """All values are checked before the first is written."""
    module = build("gru")
    x = normal((4, 3, WIDTH))
    before = module(x)
    values = {k: v + 1 for k, v in module.state_dict().items()}
    values["weight_hh_l0"] = BAD_VALUES[bad]
    for strict in (True, False):
        with refused("weight_hh_l0"):
            module.load_state_dict(values, strict=strict)
        assert_same_bits(module(x), before)


def test_missing_and_unknown_names():
    module = build("gru")
    x = normal((4, 3, WIDTH))
    before = module(x)
    old = module.state_dict()
    values = {k: v + 1 for k, v in old.items()}
    missing = {k: v for k, v in values.items() if k != "bias_hh_l0"}
    unknown = values | {"weight_ih_l1": np.zeros(3)}
    with pytest.raises(ValueError, match="bias_hh_l0"):
        module.load_state_dict(missing)
    with pytest.raises(ValueError, match="weight_ih_l1"):
        module.load_state_dict(unknown)
    assert_same_bits(module(x), before)

    module.load_state_dict(missing | {"more": None}, strict=False)
    now = module.state_dict()
    np.testing.assert_array_equal(now["weight_hh_l0"], values["weight_hh_l0"])
    np.testing.assert_array_equal(now["bias_hh_l0"], old["bias_hh_l0"])


@pytest.mark.parametrize("bad", [None, 3, "text", [("weight_ih_l0", 1)], {1: np.zeros(3)}, np.zeros(3)])
def test_no_dictionary(bad):
    module = build("gru")
    with pytest.raises((TypeError, ValueError)) as caught:
        module.load_state_dict(bad)
    assert not INTERNAL.search(str(caught.value))


# --- live parameters ------------------------------------------------------------------------------


@cells
@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_changes_are_noticed(cell, dtype):
    """Each parameter, changed in one element by one unit in the last place or more, changes the next call."""
    module = build(cell, dtype=dtype, num_layers=2)
    x = normal((4, 3, WIDTH), dtype=dtype)
    for name, value in module.parameters().items():
        before = module(x)[0]
        value.reshape(-1)[-1] += 0.5
        now = module(x)[0]
        assert not np.array_equal(now, before), name
        fresh = build(cell, dtype=dtype, num_layers=2, seed=9)
        fresh.load_state_dict(module.state_dict())
        assert_same_bits(fresh(x)[0], now)
        value.reshape(-1)[-1] = np.nextafter(value.reshape(-1)[-1], dtype(0))
        assert module.state_dict()[name].reshape(-1)[-1] == value.reshape(-1)[-1]


@cells
def test_changes_back_are_noticed(cell):
    module = build(cell)
    x = normal((4, 3, WIDTH))
    before = module(x)
    weights = module.parameters()["weight_hh_l0"]
    kept = weights.copy()
    weights *= 2
    assert not np.array_equal(module(x)[0], before[0])
    weights[...] = kept
    assert_same_bits(module(x), before)


def test_swapped_weights_are_noticed():
    """A hash of a plain sum would not see two values change places."""
    module = build("lstm")
    x = normal((4, 3, WIDTH))
    before = module(x)[0]
    weights = module.parameters()["weight_ih_l0"]
    weights[[0, 1]] = weights[[1, 0]]
    assert not np.array_equal(module(x)[0], before)


def test_every_byte_of_large_parameters_counts_on_any_number_of_threads():
    """They are looked at in pieces, by several threads."""
    arrays = [np.zeros(200_001, np.uint8), np.zeros(3, np.uint8), np.zeros((300, 1000), np.uint8)]
    places = [(0, i) for i in (0, 65_535, 65_536, 131_071, 131_072, 199_999, 200_000)]
    places += [(1, 2), (2, 0), (2, 65_536), (2, 299_999)]
    seen = []
    for threads in (1, 2, 3):
        with gr.num_threads(threads):
            fingerprints = [_core.fingerprint(arrays)]
            for which, at in places:
                arrays[which].reshape(-1)[at] = 1
                fingerprints.append(_core.fingerprint(arrays))
                arrays[which].reshape(-1)[at] = 0
            seen.append(fingerprints)
    assert len(set(seen[0])) == 1 + len(places)
    assert seen[1:] == seen[:1] * 2
    with pytest.raises(ValueError, match="contiguous"):
        _core.fingerprint([arrays[2].T])


@pytest.mark.parametrize("apart", [4, 8, 64, 256, 512, 4096, 131_072])
@pytest.mark.parametrize("content", ["zeros", "ones", "random"])
def test_a_change_does_not_hide_another(apart, content):
    """Two words change at once: in one product, one block, or one sum."""
    numbers = {
        "zeros": np.zeros(40_000, np.float32),
        "ones": np.ones(40_000, np.float32),
        "random": np.random.default_rng(1).standard_normal(40_000).astype(np.float32),
    }[content]
    before = _core.fingerprint([numbers])
    for i in range(0, 200, 3):
        places = [i, i + apart // 4]
        words = numbers[places].view(np.uint32)
        pairs = [words ^ np.uint32(1 << bit) for bit in range(32)]  # the last is the sign
        pairs += [
            words + np.array([1, 2**32 - 1], np.uint32),
            words ^ words[0] ^ words[1],
            ~words,
            words[::-1],
        ]
        for pair in pairs:
            if np.array_equal(pair, words):
                continue
            changed = numbers.copy()
            changed[places] = np.ascontiguousarray(pair).view(np.float32)
            assert _core.fingerprint([changed]) != before


def test_parameters_with_a_mask_are_refused():
    module = build("gru")
    state = module.state_dict()
    name = "weight_hh_l0"
    with pytest.raises(TypeError, match=f"{name}: expected an array without a mask"):
        module.load_state_dict(state | {name: np.ma.masked_array(state[name], state[name] > 0)})


def test_saving_keeps_permissions_and_replaces_nothing_but_files(tmp_path):
    module, path = build("gru"), tmp_path / "module.safetensors"
    module.save(path)
    path.chmod(0o600)
    module.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    pipe, loop, long = tmp_path / "pipe", tmp_path / "loop", tmp_path / ("\u3042" * 80)
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    for target in (pipe, loop):
        with pytest.raises(OSError, match=target.name):
            module.save(target)
    assert pipe.is_fifo()
    assert loop.is_symlink()
    module.save(long)
    assert_equal_modules(gr.load(long), module)


@cells
def test_attributes_are_the_parameters(cell):
    module = build(cell, bidirectional=True)
    for name, value in module.parameters().items():
        assert np.shares_memory(getattr(module, name), value)
    x = normal((4, 3, WIDTH))
    before = module(x)
    new = normal((GATES[cell][0] * H, H), seed=5)
    module.weight_hh_l0 = new
    assert not np.array_equal(module(x)[0], before[0])
    np.testing.assert_array_equal(module.state_dict()["weight_hh_l0"], new)
    now = module(x)
    for bad in BAD_VALUES.values():
        if cell.startswith("gru") or np.shape(bad) != (3 * H, H):
            with refused("weight_hh_l0"):
                module.weight_hh_l0 = bad
    assert_same_bits(module(x), now)
    with pytest.raises(AttributeError):
        module.weight_hh_l7 = new
    with pytest.raises(AttributeError):
        _ = module.weight_hh_l7


# --- copies and files -----------------------------------------------------------------------------


def everything(cell):
    options = {
        "num_layers": 2,
        "bidirectional": True,
        "batch_first": True,
        "dropout": 0.5,
        "dtype": np.float64,
    }
    return build(cell, WIDTH, H, **options, **({"proj_size": 3} if cell.startswith("lstm") else {}))


def assert_equal_modules(a, b):
    assert type(a) is type(b)
    assert repr(a) == repr(b)
    assert a.dtype == b.dtype
    x = normal((4, 3, WIDTH), dtype=a.dtype)
    assert_same_bits(a(x), b(x))


@cells
@pytest.mark.parametrize("make", [build, everything])
@pytest.mark.parametrize("method", ["copy", "deepcopy", *range(2, pickle.HIGHEST_PROTOCOL + 1)])
def test_copies(cell, make, method):
    """Equal, and independent of the original."""
    module = make(cell)
    if method == "copy":
        twin = copy.copy(module)
    elif method == "deepcopy":
        twin = copy.deepcopy(module)
    else:
        twin = pickle.loads(pickle.dumps(module, protocol=method))
    assert_equal_modules(module, twin)
    if method != "copy":
        before = module.state_dict()
        for value in twin.parameters().values():
            value[...] = 0
        for name, value in module.state_dict().items():
            np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize(
    "method", [copy.copy, copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))]
)
def test_copies_drop_what_the_original_drops_next(method):
    """And draw from a generator of their own."""
    module = build("gru", num_layers=2, dropout=0.5)
    x = normal((4, 3, module.input_size))
    module.forward(x)
    twin = method(module)
    from_twin = [twin.forward(x)[0] for _ in range(2)]
    assert not np.array_equal(*from_twin)
    for expected in from_twin:
        assert_same_bits(module.forward(x)[0], expected)


@cells
@pytest.mark.parametrize("make", [build, everything])
@pytest.mark.parametrize("as_text", [True, False])
def test_save_and_load(cell, make, as_text, tmp_path):
    module = make(cell)
    path = tmp_path / "module.safetensors"
    module.save(str(path) if as_text else path)
    twin = gr.load(str(path) if as_text else path)
    assert_equal_modules(module, twin)
    for name, value in module.state_dict().items():
        np.testing.assert_array_equal(twin.state_dict()[name], value)
    twin.parameters()["weight_hh_l0"][...] = 0  # writable, and not the file's memory
    assert_equal_modules(module, gr.load(path))


def test_file_is_safetensors(tmp_path):
    """Any reader of the format finds torch's names in it."""
    from safetensors.numpy import load_file

    module = build("lstm", num_layers=2)
    module.save(tmp_path / "m.safetensors")
    values = load_file(tmp_path / "m.safetensors")
    assert values.keys() == module.state_dict().keys()
    for name, value in module.state_dict().items():
        np.testing.assert_array_equal(values[name], value)


def test_files_and_pickles_from_before_an_argument(tmp_path):
    """`coupled` came later: what does not name it has its default."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    module = build("lstm_peephole")
    module.save(tmp_path / "now.safetensors")
    with safe_open(tmp_path / "now.safetensors", "np") as file:
        metadata = dict(file.metadata())
    config = json.loads(metadata["config"])
    del config["coupled"]
    save_file(module.state_dict(), tmp_path / "then.safetensors", metadata | {"config": json.dumps(config)})
    assert_equal_modules(module, gr.load(tmp_path / "then.safetensors"))

    rebuild, (cls, options, *rest) = module.__reduce__()[:2]
    then = {name: value for name, value in options.items() if name != "coupled"}
    assert_equal_modules(module, rebuild(cls, then, *rest))


def test_save_replaces_a_file(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"something else")
    module = build("gru")
    module.save(path)
    assert_equal_modules(gr.load(path), module)
    assert list(tmp_path.iterdir()) == [path]


def corrupted(data):
    """{what is wrong: bytes} for the bytes of a good file."""
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]

    def rebuilt(change):
        changed = json.loads(json.dumps(header))
        change(changed)
        text = json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + body

    def metadata(key, value):
        """Change a key at any depth of the metadata, in whatever form the configuration stands there."""

        def change(changed):
            meta = changed["__metadata__"]
            for k, v in list(meta.items()):
                if k == key:
                    meta[k] = value
                elif v.startswith("{"):
                    inner = json.loads(v)
                    if key in inner:
                        inner[key] = value
                        meta[k] = json.dumps(inner)

        return change

    broken = {
        "empty": b"",
        "short": data[:5],
        "only the length": data[:8],
        "half a header": data[: 8 + size // 2],
        "no body": data[: 8 + size],
        "half a body": data[: 8 + size + len(body) // 2],
        "one byte short": data[:-1],
        "one byte long": data + b"x",
        "huge header": struct.pack("<Q", 2**63) + data[8:],
        "no header": bytes(len(data)),
        "text": b"this is a text file, and no module at all\n" * 20,
        "pickle": pickle.dumps({"weight_ih_l0": np.zeros(3)}),
        "no metadata": rebuilt(lambda h: h.pop("__metadata__")),
        "empty metadata": rebuilt(lambda h: h.update(__metadata__={})),
        "foreign metadata": rebuilt(lambda h: h.update(__metadata__={"format": "pt"})),
        "a name gone": rebuilt(lambda h: h.update({"other": h.pop("weight_hh_l0")})),
        "a shape changed": rebuilt(lambda h: h["weight_hh_l0"].update(shape=[H, 3 * H])),
        "a type changed": rebuilt(lambda h: h["weight_hh_l0"].update(dtype="I32")),
    }
    for key, values in {
        "hidden_size": [0, -7, 8, 2**40, "7", None, 7.5],
        "num_layers": [0, 2, 2**40],
        "dtype": ["object", "float16", None],
        "bias": ["maybe", False],
        "dropout": [2, "x"],
    }.items():
        broken |= {f"{key}={value!r}": rebuilt(metadata(key, value)) for value in values}
    return broken


def test_broken_files(tmp_path):
    """A ValueError that names the file, whatever is broken; no crash, no module with wrong numbers."""
    path = tmp_path / "m.safetensors"
    module = build("gru")
    module.save(path)
    good = path.read_bytes()
    loaded, messages = [], {}
    for what, data in corrupted(good).items():
        assert data != good, f"{what}: the test changed nothing"
        broken = tmp_path / "broken.safetensors"
        broken.write_bytes(data)
        try:
            gr.load(broken)
        except ValueError as error:
            messages[what] = str(error)
        else:
            loaded.append(what)
    assert loaded == []
    for what, message in messages.items():
        assert "broken.safetensors" in message, what
        assert not INTERNAL.search(message), what


def test_every_truncation(tmp_path):
    path = tmp_path / "m.safetensors"
    build("rnn_tanh", 2, 2).save(path)
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"m\.safetensors"):
            gr.load(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        gr.load(tmp_path / "none.safetensors")
    with pytest.raises(OSError, match=r"none|directory"):
        build("gru").save(tmp_path / "none" / "m.safetensors")
    with pytest.raises(OSError, match=r"."):
        gr.load(tmp_path)


@pytest.mark.parametrize("bad", [None, 3, 1.5, [], {}])
def test_no_path(bad):
    for call in (gr.load, build("gru").save):
        with pytest.raises(TypeError, match="path"):
            call(bad)
