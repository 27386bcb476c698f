"""from_torch, to_torch and load_parameters of PyTorch's files: same options, same values, refusals."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import gatedrnn as gr
from helpers import assert_same_bits, normal

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("one_torch_thread")]
torch = pytest.importorskip("torch")

CASES = [
    ("LSTM", {}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    ("LSTM", {"proj_size": 3, "bias": False, "num_layers": 2, "dropout": 0.5}),
    ("GRU", {"num_layers": 2, "bidirectional": True}),
    ("RNN", {"nonlinearity": "relu"}),
    ("RNN", {"bias": False}),
    ("LSTMCell", {}),
    ("GRUCell", {"bias": False}),
    ("RNNCell", {"nonlinearity": "relu"}),
]
cases = pytest.mark.parametrize(("name", "options"), CASES, ids=str)


def h_of(result):
    while isinstance(result, tuple):
        result = result[0]
    return result if isinstance(result, np.ndarray) else result.detach().numpy()


def x_for(name):
    return normal((3, 5) if "Cell" in name else (4, 3, 5))


@cases
@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_there_and_back(name, options, dtype):
    torch.manual_seed(1)
    theirs = getattr(torch.nn, name)(5, 7, dtype=getattr(torch, dtype), **options).eval()
    ours = gr.from_torch(theirs)
    assert type(ours).__name__ == name
    assert ours.dtype == np.dtype(dtype)
    x = x_for(name).astype(dtype)
    np.testing.assert_allclose(h_of(ours(x)), h_of(theirs(torch.from_numpy(x))), rtol=0, atol=1e-5)
    back = gr.to_torch(ours)
    assert type(back) is type(theirs)
    assert repr(back) == repr(theirs)
    assert {key: value.tolist() for key, value in back.state_dict().items()} == {
        key: value.tolist() for key, value in theirs.state_dict().items()
    }
    with torch.no_grad():
        next(back.parameters()).zero_()  # a copy
    assert_same_bits(h_of(gr.from_torch(theirs)(x)), h_of(ours(x)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_widened(dtype):
    theirs = torch.nn.GRU(5, 7, dtype=getattr(torch, dtype))
    ours = gr.from_torch(theirs)
    assert ours.dtype == np.float32
    assert_same_bits(ours.weight_hh_l0, theirs.weight_hh_l0.detach().float().numpy())


def test_parametrized_modules_give_what_they_compute():
    theirs = torch.nn.LSTM(5, 7)
    torch.nn.utils.parametrizations.weight_norm(theirs, "weight_hh_l0")
    with torch.no_grad():
        theirs.parametrizations.weight_hh_l0.original0.mul_(2)
    x = x_for("LSTM")
    np.testing.assert_allclose(
        gr.from_torch(theirs)(x)[0], theirs(torch.from_numpy(x))[0].detach(), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LSTM", {"peephole": True, "layer_norm": "gates", "merge": "sum", "bidirectional": True}),
        ("GRU", {"reset_after": False, "activations": {"n": "relu"}, "direction": "reverse"}),
        ("RNN", {"learn_state": True, "clip": 0.5}),
        ("LSTMCell", {"coupled": True}),
    ],
    ids=str,
)
def test_our_own_modules_for_pytorch(name, options):
    from gatedrnn import torch as own

    theirs = getattr(own, name)(5, 7, **options)
    ours = gr.from_torch(theirs)
    assert {key: getattr(ours, key) for key in options} == options
    x = x_for(name)
    assert_same_bits(h_of(ours(x)), h_of(theirs(torch.from_numpy(x))))


class Subclass(torch.nn.LSTM):
    pass


@pytest.mark.parametrize(
    "module", [None, "LSTM", torch.nn.Linear(3, 4), Subclass(3, 4), torch.nn.LSTM, gr.LSTM(3, 4)], ids=str
)
def test_what_is_no_such_module(module):
    with pytest.raises(
        TypeError, match=r"module: expected a torch\.nn\.LSTM, GRU, RNN or one of their cells"
    ):
        gr.from_torch(module)


def test_what_cannot_be_read():
    theirs = torch.nn.LSTM(3, 4)
    with torch.no_grad():
        theirs.bias_ih_l0[2] = float("nan")
    with pytest.raises(ValueError, match="bias_ih_l0: expected finite numbers"):
        gr.from_torch(theirs)
    with pytest.raises(TypeError, match="weight_ih_l0: expected an array"):
        gr.from_torch(torch.nn.LSTM(3, 4, device="meta"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LSTM", {"peephole": True}),
        ("LSTM", {"coupled": True}),
        ("LSTM", {"cell_clip": 3.0}),
        ("LSTM", {"layer_norm": "products"}),
        ("LSTM", {"direction": "reverse"}),
        ("GRU", {"reset_after": False}),
        ("GRU", {"activations": {"n": "relu"}}),
        ("GRU", {"clip": 3.0}),
        ("GRU", {"merge": "sum", "bidirectional": True}),
        ("RNN", {"learn_state": True}),
        ("LSTMCell", {"peephole": True}),
    ],
    ids=str,
)
def test_what_torch_has_not(name, options):
    option, value = next(iter(options.items()))
    expected = f"module: expected what torch.nn.{name} can compute, got {option}={value!r}"
    with pytest.raises(ValueError, match="module: expected what") as raised:
        gr.to_torch(getattr(gr, name)(3, 4, **options))
    assert str(raised.value) == f"{expected}; gatedrnn.torch.{name} has that"


def test_to_torch_of_something_else():
    with pytest.raises(
        TypeError, match="module: expected an LSTM, GRU, RNN or one of their cells of gatedrnn"
    ):
        gr.to_torch(torch.nn.LSTM(3, 4))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(10, 5)
        self.encoder = torch.nn.GRU(5, 7, num_layers=2)
        self.decoder = torch.nn.LSTMCell(7, 4)


@pytest.mark.parametrize("nested", [False, True])
def test_files_of_whole_models(tmp_path, nested):
    model = Model()
    content = {"epoch": 3, "model": model.state_dict()} if nested else model.state_dict()
    torch.save(content, tmp_path / "m.pt")
    start = "model." if nested else ""
    x = normal((4, 3, 5))
    gru = gr.load_parameters(tmp_path / "m.pt", start + "encoder")
    np.testing.assert_allclose(gru(x)[0], model.encoder(torch.from_numpy(x))[0].detach(), rtol=0, atol=1e-5)
    cell = gr.load_parameters(tmp_path / "m.pt", start + "decoder.")
    assert repr(cell) == "LSTMCell(7, 4)"
    with pytest.raises(ValueError, match=r"prefix: expected one of '.*decoder.', '.*encoder.', got ''"):
        gr.load_parameters(tmp_path / "m.pt")


class Evil:
    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_in_a_file_is_executed(tmp_path):
    Evil.path = tmp_path / "written"
    for file, content in {
        "evil.pt": pickle.dumps({"weight_ih_l0": Evil()}),
        "empty.pt": b"",
        "text.pt": b"no tensors at all",
        "half.pt": None,
    }.items():
        path = tmp_path / file
        if content is None:
            torch.save(Model().state_dict(), path)
            content = path.read_bytes()[:-500]
        path.write_bytes(content)
        with pytest.raises(ValueError, match="expected tensors by name, of safetensors or PyTorch"):
            gr.load_parameters(path)
    torch.save(Evil(), tmp_path / "evil2.pt")
    with pytest.raises(ValueError, match="expected tensors by name"):
        gr.load_parameters(tmp_path / "evil2.pt")
    assert not Evil.path.exists()
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"by torch\.nn's names, got none"):
        gr.load_parameters(tmp_path / "list.pt")
