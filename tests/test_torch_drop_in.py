"""Our modules are torch.nn's by type, and programs that look into those find what they expect."""

from __future__ import annotations

import abc
import copy
import io
import pickle
import warnings

import pytest

from helpers import run_python

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("one_torch_thread")]
torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, prune, weight_norm  # noqa: E402
from torch.nn.utils.rnn import pack_sequence  # noqa: E402

import gatedrnn.torch as gt  # noqa: E402
from torch_modules import HIDDEN, INPUT, pair, random, torchs_cells  # noqa: E402

NAMES = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")
LAYERS = {"num_layers": 2, "bidirectional": True}
every_class = pytest.mark.parametrize("name", NAMES)


def both(name, *arguments, **options):
    """torch.nn's module and ours, of the same parameters."""
    torch.manual_seed(0)
    theirs = getattr(nn, name)(*arguments, **options)
    torch.manual_seed(0)
    return theirs, getattr(gt, name)(*arguments, **options)


def tensors(results):
    return torch.utils._pytree.tree_leaves(results)


def assert_close(actual, expected):
    for a, b in zip(tensors(actual), tensors(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


class Model(nn.Module):
    """A model as programs have them: a module twice in it, and one that is called step by step."""

    def __init__(self, library):
        super().__init__()
        torch.manual_seed(0)
        self.rnn = library.LSTM(INPUT, HIDDEN, batch_first=True, **LAYERS)
        self.gru = library.GRU(2 * HIDDEN, HIDDEN)
        self.cell = library.LSTMCell(HIDDEN, 3)
        self.plain = library.RNNCell(3, 2)

    def forward(self, x):
        y, _ = self.rnn(x)
        y, h = self.gru(y)
        h, c = self.cell(y[-1])
        h, c = self.cell(y[-1], (h, c))
        return self.plain(h), c


# ---- by type ----


@every_class
def test_subclasses(name):
    theirs, ours = both(name, INPUT, HIDDEN)
    assert isinstance(ours, type(theirs))
    assert isinstance(ours, nn.RNNCellBase if "Cell" in name else nn.RNNBase)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]


def test_a_class_of_an_abstract_base_and_ours():
    """As libraries declare theirs, with torch.nn's class replaced."""

    class Base(abc.ABC, nn.RNNBase):
        @abc.abstractmethod
        def begin(self, batch): ...

    class Theirs(Base, nn.LSTM):
        def begin(self, batch):
            return torch.zeros(1, batch, self.hidden_size), torch.zeros(1, batch, self.hidden_size)

    class Ours(Base, gt.LSTM):
        begin = Theirs.begin

    torch.manual_seed(0)
    theirs = Theirs(INPUT, HIDDEN)
    torch.manual_seed(0)
    ours = Ours(INPUT, hidden_size=HIDDEN)
    x = random(4, 3, INPUT)
    assert_close(ours(x, ours.begin(3)), theirs(x, theirs.begin(3)))
    assert gt.inspect(nn.Sequential(ours)) == {"0": "gatedrnn.torch.Ours(5, 7)"}
    with pytest.warns(UserWarning, match="restore left 0: Ours is a class of its own"):
        assert type(gt.restore(nn.Sequential(ours))[0]) is Ours


def test_a_class_that_changes_the_call():
    class Last(gt.GRU):
        def forward(self, input, hx=None):
            return super().forward(input, hx)[0][-1]

    module, x = Last(INPUT, HIDDEN), random(4, 3, INPUT)
    assert torch.equal(module(x), gt.GRU.forward(module, x)[0][-1])


@torchs_cells
@pytest.mark.parametrize("options", [{}, LAYERS, {"bias": False}], ids=str)
def test_private_names(cell, options):
    ours, theirs = pair(cell, **options)
    for name in ("mode", "_all_weights", "_flat_weights_names", "proj_size"):
        assert getattr(ours, name) == getattr(theirs, name)
    for ours_list, theirs_list in (
        (ours._flat_weights, theirs._flat_weights),
        *zip(ours.all_weights, theirs.all_weights, strict=True),
    ):
        assert_close(ours_list, theirs_list)
    x = random(4, 3, INPUT)
    assert ours.get_expected_hidden_size(x, None) == theirs.get_expected_hidden_size(x, None)
    h = torch.zeros(ours.get_expected_hidden_size(x, None))
    ours.check_input(x, None)
    with pytest.raises(RuntimeError):
        ours.check_hidden_size(h[:, :1], ours.get_expected_hidden_size(x, None))
    assert "h_0" not in gt.GRU(INPUT, HIDDEN, learn_state=True)._flat_weights_names


def test_flat_weights_that_a_program_sets():
    """As regularisers do that drop weights in each step."""
    theirs, ours = both("LSTM", INPUT, HIDDEN)
    x, raw = random(4, 3, INPUT), random(4 * HIDDEN, HIDDEN)
    for module in (theirs, ours):
        weights = list(module._flat_weights)
        weights[1] = raw * 0.5
        module._flat_weights = weights
    assert_close(ours._flat_weights, theirs._flat_weights)
    assert_close(ours(x), nn.LSTM.forward(theirs, x))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("how", ["weight_norm", "parametrizations", "prune", "spectral_norm"])
def test_weights_that_are_made(how):
    theirs, ours = both("LSTM", INPUT, HIDDEN)
    x, results = random(4, 3, INPUT), []
    for module in (theirs, ours):
        if how == "weight_norm":
            weight_norm(module, "weight_hh_l0")
        elif how == "parametrizations":
            parametrizations.weight_norm(module, "weight_ih_l0")
        elif how == "spectral_norm":
            torch.manual_seed(1)
            parametrizations.spectral_norm(module, "weight_hh_l0")
            module.eval()
        else:
            prune.l1_unstructured(module, "weight_hh_l0", 0.5)
        output = module(x)
        output[0].sum().backward()
        results.append([output, {name: p.grad for name, p in module.named_parameters()}])
        assert isinstance(module, nn.LSTM)
    assert_close(*results)


def test_optimisers_groups_and_initialisers():
    """Code that goes by isinstance finds ours."""
    model = Model(gt)
    found = [n for n, m in model.named_modules() if isinstance(m, (nn.LSTM, nn.GRU, nn.RNNCellBase))]
    assert found == ["rnn", "gru", "cell", "plain"]
    for module in model.modules():
        if isinstance(module, nn.LSTM):
            for weights in module.all_weights:
                nn.init.orthogonal_(weights[1])
    assert_close(model.rnn.weight_hh_l0.T @ model.rnn.weight_hh_l0, torch.eye(HIDDEN))


# ---- errors ----

CALLS = {
    "too many axes": lambda made: made.GRU(3, 4)(torch.zeros(5, 2, 3, 1)),
    "input of the wrong width": lambda made: made.GRU(3, 4)(torch.zeros(5, 2, 7)),
    "packed input of the wrong width": lambda made: made.GRU(3, 4)(pack_sequence([torch.zeros(5, 7)])),
    "state of the wrong batch": lambda made: made.GRU(3, 4)(torch.zeros(5, 2, 3), torch.zeros(1, 9, 4)),
    "state of the wrong width": lambda made: made.LSTM(3, 4)(
        torch.zeros(5, 2, 3), (torch.zeros(1, 2, 9),) * 2
    ),
    "batched state": lambda made: made.RNN(3, 4)(torch.zeros(5, 3), torch.zeros(1, 2, 4)),
    "input of another dtype": lambda made: made.GRU(3, 4)(torch.zeros(5, 2, 3).double()),
    "proj_size for a GRU": lambda made: made.GRU(3, 4, proj_size=2),
    "proj_size for an RNN": lambda made: made.RNN(3, 4, proj_size=2),
    "projection as wide": lambda made: made.LSTM(3, 4, proj_size=4),
    "no units": lambda made: made.LSTM(3, 0),
    "no layers": lambda made: made.GRU(3, 4, num_layers=0),
    "fractions": lambda made: made.GRU(3, 4.5),
    "bias": lambda made: made.GRU(3, 4, bias="no"),
    "dropout": lambda made: made.GRU(3, 4, dropout=2),
    "nonlinearity": lambda made: made.RNN(3, 4, nonlinearity="sine"),
    "cell's axes": lambda made: made.LSTMCell(3, 4)(torch.zeros(5, 2, 3)),
    "cell's width": lambda made: made.GRUCell(3, 4)(torch.zeros(2, 7)),
    "cell's state": lambda made: made.RNNCell(3, 4)(torch.zeros(2, 3), torch.zeros(5, 4)),
    "cell's dtype": lambda made: made.LSTMCell(3, 4)(torch.zeros(2, 3).double()),
}


@pytest.mark.parametrize("case", CALLS)
def test_errors_are_of_the_types_that_torch_raises(case):
    with pytest.raises(Exception) as theirs:  # noqa: PT011 - whatever it is
        CALLS[case](nn)
    with pytest.raises(theirs.type) as ours:
        CALLS[case](gt)
    assert isinstance(ours.value, (TypeError, ValueError))


# ---- pickles ----


class Patched(pickle.Unpickler):
    """Reads as a program does in which torch.nn's classes are ours."""

    def find_class(self, module, name):
        ours = module == "torch.nn.modules.rnn" and name in NAMES
        return getattr(gt, name) if ours else super().find_class(module, name)


@every_class
def test_pickles_of_torchs_modules_load_as_ours(name):
    theirs, _ = both(name, INPUT, HIDDEN, bias=False)
    ours = Patched(io.BytesIO(pickle.dumps(theirs))).load()
    x = random(4, INPUT)
    assert type(ours) is getattr(gt, name)
    assert_close(ours(x), theirs(x))
    assert_close(copy.deepcopy(ours)(x), theirs(x))
    fresh = getattr(gt, name)(INPUT, HIDDEN, bias=False)
    assert vars(ours).keys() <= vars(fresh).keys() | vars(theirs).keys()
    assert repr(ours) == repr(fresh)


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize(
    ("name", "options"), [("LSTM", LAYERS | {"proj_size": 3}), ("RNN", {"nonlinearity": "relu"})]
)
def test_options_in_pickles_of_torchs_modules(name, options):
    theirs, _ = both(name, INPUT, HIDDEN, **options)
    ours = Patched(io.BytesIO(pickle.dumps(theirs))).load()
    assert repr(ours) == repr(getattr(gt, name)(INPUT, HIDDEN, **options))
    assert_close(ours(random(4, 3, INPUT)), theirs(random(4, 3, INPUT)))


@every_class
def test_files_with_safe_loading(name, tmp_path):
    """A whole module needs its class allowed, and no private one."""
    module = getattr(gt, name)(
        INPUT, HIDDEN, activations={"n" if "GRU" in name else "h" if "RNN" in name else "g": "relu"}
    )
    torch.save(module, tmp_path / "module.pt")
    collections = torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "module.pt")
    with torch.serialization.safe_globals([type(module)]):
        loaded = torch.load(tmp_path / "module.pt", weights_only=True)
    assert [c for c in collections if "gatedrnn" in c] == [f"gatedrnn.torch.{name}"]
    assert torch.equal(tensors(loaded(random(4, INPUT)))[0], tensors(module(random(4, INPUT)))[0])


def test_state_of_an_older_pickle():
    """It had the private attributes, too."""
    module = gt.LSTM(INPUT, HIDDEN)
    old = gt.LSTM.__new__(gt.LSTM)
    old.__setstate__({k: v for k, v in vars(module).items() if k not in ("coupled", "direction", "merge")})
    assert torch.equal(old(random(4, INPUT))[0], module(random(4, INPUT))[0])
    assert old._cache is not module._cache


# ---- what writes programs down ----


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_loads_without_this_package(how, tmp_path):
    model, x = Model(gt), random(4, 3, INPUT)
    expected = [t.detach() for t in model(x)]
    written = torch.jit.script(copy.deepcopy(model)) if how == "script" else torch.jit.trace(model, x)
    torch.jit.save(written, tmp_path / "model.pt")
    torch.save((x, expected), tmp_path / "results.pt")
    code = f"""
import json, sys, torch
model = torch.jit.load({str(tmp_path / "model.pt")!r})
x, expected = torch.load({str(tmp_path / "results.pt")!r})
right = [torch.allclose(a, b, atol=1e-6) for a, b in zip(model(x), expected)]
print(json.dumps([all(right), "gatedrnn" in sys.modules]))
"""
    assert run_python(code) == [True, False]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_of_what_torch_has_not():
    module = gt.LSTM(INPUT, HIDDEN, peephole=True)
    with pytest.raises(NotImplementedError, match="TorchScript has no LSTM with peephole=True"):
        torch.jit.script(module)

    class Ragged(gt.GRU):
        def forward(self, input):
            return super().forward(input, lengths=[4, 1, 3])[0]

    x = random(4, 3, INPUT)
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        traced = torch.jit.trace(module, x)
        torch.jit.trace(Ragged(INPUT, HIDDEN), x)
    said = {str(w.message).partition(", so")[0] for w in caught if "loaded only where" in str(w.message)}
    assert said == {
        "gatedrnn.torch: torch.nn has no peephole=True",
        "gatedrnn.torch: torch.nn has no lengths=, mask= or resets=",
    }
    assert torch.equal(traced(x)[0], module(x)[0])


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = gt.LSTM(INPUT, HIDDEN, bidirectional=True)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths)
        return nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0])[0]


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::UserWarning",
    "ignore::torch.jit.TracerWarning",
)
@pytest.mark.parametrize("form", ["padded", "packed", "by torch.export"])
def test_exporters_to_onnx(form, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    x, dynamo = random(4, 3, INPUT), form == "by torch.export"
    if form == "packed":
        model, arguments = Packed(), (x, torch.tensor([4, 2, 1]))
    else:
        model, arguments = nn.Sequential(gt.LSTM(INPUT, HIDDEN, num_layers=2)), (x,)
    model.eval()
    expected = [e.detach() for e in tensors(model(*arguments))]
    file = tmp_path / "model.onnx"
    torch.onnx.export(model, arguments, file, dynamo=dynamo, **({"verbose": False} if dynamo else {}))
    assert b"LSTM" in file.read_bytes()
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    inputs = {i.name: a.numpy() for i, a in zip(session.get_inputs(), arguments, strict=True)}
    assert_close([torch.from_numpy(a) for a in session.run(None, inputs)], expected)


def test_fx_keeps_modules_as_nodes():
    kinds = []
    for library in (nn, gt):
        model, x = Model(library), random(4, 3, INPUT)
        traced = torch.fx.symbolic_trace(model)
        assert_close(traced(x), model(x))
        kinds.append([(node.op, str(node.target)) for node in traced.graph.nodes if node.op == "call_module"])
    assert kinds[0] == kinds[1]
    assert [target for _, target in kinds[0]] == ["rnn", "gru", "cell", "cell", "plain"]


def test_fx_keeps_arguments():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = gt.GRU(INPUT, HIDDEN)

        def forward(self, x, h, lengths):
            return (
                self.rnn(x, h, lengths=lengths)[0]
                + self.rnn(x, mask=x[..., 0] > 0, mask_output="previous")[0]
            )

    model = Masked()
    arguments = random(4, 3, INPUT), random(1, 3, HIDDEN), torch.tensor([4, 0, 2])
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(*arguments), model(*arguments))
    assert [n.op for n in traced.graph.nodes].count("call_module") == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantize_per_tensor:UserWarning")
def test_dynamic_quantisation_says_that_it_leaves_ours():
    model = nn.Sequential(nn.Linear(3, 3), gt.LSTM(3, 4))
    with pytest.warns(UserWarning, match="leaves gatedrnn.torch's modules as they are"):
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM, nn.Linear})
    assert type(quantised[1]) is gt.LSTM


def test_dynamo_takes_in_ours_and_leaves_torchs_out(compiled):
    x = random(4, 3, INPUT)
    assert_close(compiled(gt.LSTM(INPUT, HIDDEN).eval())(x)[0].shape, x.new_empty(4, 3, HIDDEN).shape)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(nn.LSTM(INPUT, HIDDEN))(x)
    assert torch._dynamo.config.allow_rnn is False


def test_dynamo_imported_before_and_after():
    code = """
import json, sys, torch
{before}
import gatedrnn.torch
late = "torch._dynamo" not in sys.modules
model = torch.compile(gatedrnn.torch.GRU(3, 4), fullgraph=True, backend="eager")
print(json.dumps([model(torch.zeros(5, 2, 3))[0].shape[-1], late]))
"""
    assert run_python(code.format(before="")) == [4, True]
    assert run_python(code.format(before="import torch._dynamo.variables.builder")) == [4, False]


# ---- what surrounds modules ----


@every_class
def test_hooks(name):
    """As training libraries set them, before and after both ways."""
    seen = {}
    for module in both(name, INPUT, HIDDEN):
        calls = seen[type(module).__module__.partition(".")[0]] = []
        module.register_forward_pre_hook(
            lambda m, arguments, options, calls=calls: calls.append(
                ("before", len(arguments), list(options))
            ),
            with_kwargs=True,
        )
        module.register_forward_hook(lambda m, a, result, calls=calls: calls.append(len(tensors(result))))
        module.register_full_backward_pre_hook(lambda m, g, calls=calls: calls.append(("back", len(g))))
        module.register_full_backward_hook(
            lambda m, by_inputs, by_outputs, calls=calls: calls.append([g is not None for g in by_inputs])
        )
        x = random(4, INPUT).requires_grad_()
        tensors(module(x))[0].sum().backward()
        calls.append(x.grad is not None)
    assert seen["gatedrnn"] == seen["torch"]
    assert len(seen["torch"]) >= 3


@every_class
def test_replicas_share_parameters(name):
    """As torch.nn.DataParallel makes them."""
    _, module = both(name, INPUT, HIDDEN)
    replica = module._replicate_for_data_parallel()
    for key in list(module._parameters):
        setattr(replica, key, module._parameters[key] * 1)
    x = random(4, INPUT)
    result = tensors(replica(x))[0]
    assert torch.equal(result, tensors(module(x))[0])
    result.sum().backward()
    assert all(p.grad is not None for n, p in module.named_parameters() if "ih" in n)
