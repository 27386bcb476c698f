"""Whole models: torch.nn's recurrent modules replaced by ours, and back."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import rnn  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

import gatedrnn.torch as gt  # noqa: E402

pytestmark = [
    pytest.mark.peers,
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore:LSTM with projections"),  # which PyTorch computes more slowly
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]


class Tagger(nn.Module):
    """Modules of all kinds, nested, shared, of several layers, directions and projected, beside others."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.encoder = nn.ModuleDict(
            {
                "lstm": nn.LSTM(6, 7, num_layers=2, bidirectional=True, batch_first=True, dropout=0.3),
                "projected": nn.LSTM(14, 9, proj_size=4, batch_first=True),
            }
        )
        self.layers = nn.ModuleList([nn.GRU(4, 4, batch_first=True), nn.RNN(4, 4, nonlinearity="relu")])
        self.again = self.layers[0]
        self.cells = nn.ModuleList([nn.LSTMCell(4, 5), nn.GRUCell(5, 5, bias=False), nn.RNNCell(5, 3)])
        self.out = nn.Linear(3, 2)

    def forward(self, ids, scale=1.0):
        x, _ = self.encoder["lstm"](self.embedding(ids))
        x, _ = self.encoder["projected"](x)
        x, _ = self.layers[0](x)
        x, _ = self.again(x)
        x, state = self.layers[1](x)
        h, _ = self.cells[0](x[:, -1])
        return self.out(self.cells[2](self.cells[1](h))) * scale, {"state": state}


RECURRENT = ["encoder.lstm", "encoder.projected", "layers.0", "layers.1", "cells.0", "cells.1", "cells.2"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Tagger()


IDS = torch.arange(12).reshape(3, 4)


def outputs(model):
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        return model(IDS)[0]


@pytest.mark.parametrize("inplace", [False, True])
def test_all_kinds_are_replaced(model, inplace):
    before = outputs(model)
    fast = gt.accelerate(model, verify=IDS, inplace=inplace)
    assert (fast is model) == inplace
    kinds = {name: type(module) for name, module in fast.named_modules() if name in RECURRENT}
    assert list(kinds) == RECURRENT
    assert all(kind.__module__.startswith("gatedrnn.torch") for kind in kinds.values())
    assert fast.again is fast.layers[0]
    assert (type(model.again) is nn.GRU) != inplace
    torch.testing.assert_close(outputs(fast), before)
    assert fast.encoder["lstm"].dropout == 0.3
    assert fast.training


def test_parameters_are_the_same_tensors_in_place(model):
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    gt.accelerate(model, inplace=True)
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert list(dict(model.named_parameters())) == list(parameters)
    before = model.cells[0].weight_ih.detach().clone()
    model(IDS)[0].sum().backward()
    optimizer.step()
    assert (model.cells[0].weight_ih != before).any()


def test_a_copy_shares_nothing(model):
    fast = gt.accelerate(model)
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.zero_()
    assert all(parameter.any() for parameter in model.parameters() if parameter.dim() > 1)


@pytest.mark.parametrize("inplace", [False, True])
def test_restore_puts_torchs_back(model, inplace):
    before, state = outputs(model), list(model.state_dict())
    fast = gt.accelerate(model)
    with torch.no_grad():
        fast.out.bias += 1
    back = gt.restore(fast, verify=IDS, inplace=inplace)
    assert (back is fast) == inplace
    torch.testing.assert_close(outputs(back), before + 1)
    assert [type(module) for module in back.modules()] == [type(module) for module in model.modules()]
    assert list(back.state_dict()) == state
    assert back.again is back.layers[0]
    pickle.loads(pickle.dumps(back))
    file = io.BytesIO()
    torch.save(back.state_dict(), file)
    assert b"gatedrnn" not in pickle.dumps(back)
    assert b"gatedrnn" not in file.getvalue()


def test_what_is_restored_leaves_pytorch(model):
    lstm = gt.restore(gt.accelerate(nn.Sequential(nn.LSTM(3, 4))))
    x = torch.randn(5, 2, 3)
    scripted = torch.jit.script(lstm)
    torch.testing.assert_close(scripted(x)[0], lstm(x)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch.nn.LSTM does
        exported = torch.export.export(lstm.eval(), (x,))
    torch.testing.assert_close(exported.module()(x)[0], lstm(x)[0])


def test_training_goes_on_with_equal_losses(model):
    model.encoder["lstm"].dropout = 0.0
    fast = gt.accelerate(model)
    fast.encoder["lstm"].dropout = 0.0
    losses = []
    for each in (model, fast):
        optimizer = torch.optim.Adam(each.parameters())
        for _ in range(5):
            optimizer.zero_grad()
            loss = each(IDS)[0].square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[:5] == pytest.approx(losses[5:], rel=1e-4)


def test_packed_sequences():
    model = nn.Sequential(nn.LSTM(3, 4, bidirectional=True))
    packed = rnn.pack_sequence([torch.randn(n, 3) for n in (5, 3, 1)])
    fast = gt.accelerate(model, verify=(packed,))
    torch.testing.assert_close(fast(packed)[0].data, model(packed)[0].data)


def test_the_model_itself():
    lstm = nn.LSTM(3, 4)
    fast = gt.accelerate(lstm, inplace=True)
    assert type(fast) is gt.LSTM
    assert fast.weight_ih_l0 is lstm.weight_ih_l0
    assert type(gt.restore(fast)) is nn.LSTM


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    model = nn.Sequential(nn.GRU(3, 4)).to(dtype)
    fast = gt.accelerate(model, precision="bfloat16")
    assert fast[0].weight_ih_l0.dtype == dtype
    assert fast[0].precision == (None if dtype == torch.float64 else "bfloat16")
    x = torch.randn(5, 2, 3, dtype=dtype)
    assert fast(x)[0].dtype == dtype


@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16x3", "int8"])
def test_precision_is_passed_on(model, precision):
    fast = gt.accelerate(model.requires_grad_(False), precision=precision, verify={"ids": IDS, "scale": 2.0})
    found = gt.inspect(fast)
    assert list(found) == RECURRENT
    assert all(f"precision='{precision}'" in text for text in found.values())


def test_hooks_and_frozen_parameters_go_along():
    model = nn.Sequential(nn.GRU(3, 4))
    seen = []
    handle = model[0].register_forward_hook(lambda module, arguments, result: seen.append(type(module)))
    model[0].weight_hh_l0.requires_grad_(False)
    model.eval()
    gt.accelerate(model, inplace=True)
    model(torch.randn(5, 2, 3))
    assert seen == [gt.GRU]
    assert not model[0].weight_hh_l0.requires_grad
    assert not model[0].training
    handle.remove()
    model(torch.randn(5, 2, 3))
    assert len(seen) == 1


# ---- what is left ----


class Own(nn.LSTM):
    """Whose equations nobody knows."""


def half_left():
    return nn.ModuleDict(
        {
            "own": Own(3, 4),
            "meta": nn.RNN(3, 4, device="meta"),
            "usual": nn.LSTM(3, 4),
        }
    )


def test_what_is_left_is_said():
    model = half_left()
    with pytest.warns(UserWarning, match="accelerate left own: Own is a class of its own; meta: its "):
        fast = gt.accelerate(model)
    assert [type(fast[name]) for name in ("own", "meta", "usual")] == [Own, nn.RNN, gt.LSTM]
    assert gt.inspect(fast) == {
        "own": "torch.nn.Own(3, 4), left: Own is a class of its own",
        "meta": "torch.nn.RNN(3, 4), left: its parameters are on meta",
        "usual": "gatedrnn.torch.LSTM(3, 4)",
    }
    assert gt.inspect(model)["usual"] == "torch.nn.LSTM(3, 4), not accelerated"


@pytest.mark.parametrize("cell", ["LSTM", "GRUCell"])
def test_parametrizations_are_kept(cell):
    parametrize, module = nn.utils.parametrize, getattr(nn, cell)(3, 4)
    name = "weight_hh" if "Cell" in cell else "weight_hh_l0"
    nn.utils.parametrizations.weight_norm(module, name)
    nn.utils.parametrizations.orthogonal(module, name.replace("hh", "ih"))
    model, x = nn.ModuleDict({"rnn": module}), torch.linspace(-1, 1, 15).reshape(5, 3)
    expected = module(x)
    fast = gt.accelerate(model, inplace=True)["rnn"]
    assert isinstance(fast, getattr(gt, cell))
    assert parametrize.is_parametrized(fast, name)
    assert fast.parametrizations is module.parametrizations
    for made in (fast, copy.deepcopy(fast), gt.restore(model)["rnn"]):
        for a, b in zip(tree_leaves(made(x)), tree_leaves(expected), strict=True):
            torch.testing.assert_close(a, b)
    tree_leaves(fast(x))[0].sum().backward()
    ours = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    tree_leaves(module(x))[0].sum().backward()
    for a, b in zip(ours, [p.grad for p in module.parameters()], strict=True):
        torch.testing.assert_close(a, b)
    parametrize.remove_parametrizations(fast, name)
    assert type(gt.restore(model)["rnn"]).__name__ == f"Parametrized{cell}"
    parametrize.remove_parametrizations(fast, name.replace("hh", "ih"))
    assert type(fast) is getattr(gt, cell)
    torch.testing.assert_close(tree_leaves(fast(x))[0], tree_leaves(expected)[0])


def test_the_older_weight_norm_is_left():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        model = nn.Sequential(nn.utils.weight_norm(nn.LSTM(3, 4), "weight_hh_l0"))
    with pytest.warns(UserWarning, match="left 0: it has other parameters"):
        gt.accelerate(model, inplace=True)  # PyTorch cannot copy it
    assert type(model[0]) is nn.LSTM


def test_what_torch_has_not_is_not_restored():
    model = nn.Sequential(gt.GRU(3, 4, reset_after=False), gt.LSTM(4, 5))
    with pytest.warns(UserWarning, match=r"restore left 0: torch\.nn\.GRU has no reset_after=False"):
        back = gt.restore(model)
    assert [type(module) for module in back] == [gt.GRU, nn.LSTM]


# ---- verify, and errors ----


def test_verify_finds_a_difference_and_changes_nothing(monkeypatch):
    model = nn.Sequential(nn.GRU(3, 4), nn.Identity())
    before = list(model)
    monkeypatch.setattr(gt.GRU, "forward", lambda self, x: (2 * x[..., :1].expand(*x.shape[:2], 4), x))
    with pytest.raises(RuntimeError, match="verify: result 0: expected a difference of at most"):
        gt.accelerate(model, verify=torch.randn(5, 2, 3), inplace=True)
    assert list(model) == before


def test_verify_leaves_modes_and_numbers_alone(model):
    model.encoder.eval()
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    fast = gt.accelerate(model, verify=IDS)
    assert [module.training for module in fast.modules()] == modes
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)


def test_errors(model):
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got 3"):
        gt.accelerate(3)
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module"):
        gt.inspect("x")
    with pytest.raises(ValueError, match="precision"):
        gt.accelerate(model, precision="int4")
    with pytest.raises(TypeError, match="inplace: expected True or False, got 1"):
        gt.restore(model, inplace=1)


# ---- inside PyTorch ----


def test_copies_pickles_and_inference_mode(model):
    fast = gt.accelerate(model)
    expected = outputs(fast)
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(outputs(again), expected)
    with torch.inference_mode():
        assert torch.equal(fast.eval()(IDS)[0], expected)


def test_compile(model, compiled):
    fast = gt.accelerate(model).eval()
    torch.testing.assert_close(compiled(fast)(IDS)[0], outputs(model))


def test_autocast(model):
    fast = gt.accelerate(model)
    with torch.autocast("cpu", torch.bfloat16):
        result = outputs(fast)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), outputs(model), atol=0.05, rtol=0.05)


# ---- two processes ----


def _gradients_of_half(rank, file, results):
    """Train one step on half of a batch, with a second process that has the other half."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = gt.accelerate(nn.Sequential(nn.GRU(3, 4, num_layers=2, bidirectional=True)))
    parallel = nn.parallel.DistributedDataParallel(model)
    x = torch.linspace(-1, 1, 6 * 4 * 3).reshape(6, 4, 3)[:, 2 * rank : 2 * rank + 2]
    parallel(x)[0].square().mean().backward()
    if rank == 0:
        torch.save([parameter.grad for parameter in model.parameters()], results)
    torch.distributed.destroy_process_group()


def test_gradients_of_two_processes_are_those_of_one(tmp_path):
    results = tmp_path / "gradients.pt"
    torch.multiprocessing.spawn(_gradients_of_half, (str(tmp_path / "meeting"), str(results)), nprocs=2)
    torch.manual_seed(0)
    model = gt.accelerate(nn.Sequential(nn.GRU(3, 4, num_layers=2, bidirectional=True)))
    model(torch.linspace(-1, 1, 6 * 4 * 3).reshape(6, 4, 3))[0].square().mean().backward()
    for ours, parameter in zip(torch.load(results), model.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad)
