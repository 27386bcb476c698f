"""What PyTorch and its neighbours do with a model: profile, count, summarise, load data, shard."""

from __future__ import annotations

import pytest

pytestmark = [
    pytest.mark.peers,
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import gatedrnn.torch as gt  # noqa: E402
from torch_modules import HIDDEN, INPUT, ours, pair, random  # noqa: E402


@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before", "rnn_relu"])
def test_profilers_show_the_cell(cell):
    module, x = ours(cell), random(4, 3, INPUT)
    with torch.profiler.profile() as profile:
        with torch.no_grad():
            module(x)
        module(x)[0].sum().backward()
    names = [event.name for event in profile.events()]
    assert names.count(f"gatedrnn::{cell}") == 2
    assert names.count(f"gatedrnn::{cell}Backward") == 1
    assert type(module(x)[0].grad_fn).__name__ == f"gatedrnn::{cell}Backward"


def flops(module, x, *, training=True):
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        output = module(x)[0]
        if training:
            output.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}], ids=str)
@pytest.mark.parametrize(
    "cell", ["gru", "rnn_tanh"]
)  # torch's LSTM is oneDNN's, which torch counts as nothing
def test_flops_are_those_that_torch_counts(cell, options):
    module, theirs = pair(cell, **options)
    x = random(4, 3, INPUT)
    assert flops(module, x, training=False) == flops(theirs, x, training=False)
    # Its gradients by the first state, which torch leaves out, are among ours.
    gates = 3 if cell == "gru" else 1
    by_state = 2 * 3 * HIDDEN * gates * HIDDEN * module._stack.tracks
    for by_x in (False, True):
        x.requires_grad_(by_x)
        assert flops(module, x) == flops(theirs, x) + by_state


def test_flops_of_an_lstm():
    module, x = gt.LSTM(INPUT, HIDDEN, learn_state=True, peephole=True), random(4, 3, INPUT)
    assert flops(module, x, training=False) == 2 * 4 * 3 * 4 * HIDDEN * (INPUT + HIDDEN)


def test_torchinfo():
    torchinfo = pytest.importorskip("torchinfo")
    summaries = []
    for each in pair("gru", num_layers=2):
        summary = torchinfo.summary(nn.Sequential(each), input_size=(4, 3, INPUT), verbose=0)
        summaries.append((str(summary), summary.total_params, summary.total_mult_adds))
    assert summaries[0] == summaries[1]


# ---- workers that load data ----


class Encoded(torch.utils.data.Dataset):
    """Examples that a frozen model encodes in the worker."""

    def __init__(self):
        torch.manual_seed(0)
        self.encoder = gt.GRU(INPUT, 64).requires_grad_(False)
        self.inputs = random(6, 9, INPUT)

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, i):
        return self.encoder(self.inputs[i])[0]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_data_loaders(start):
    data = Encoded()
    expected = torch.stack([data[i] for i in range(len(data))])
    loader = torch.utils.data.DataLoader(
        data, batch_size=2, num_workers=2, multiprocessing_context=start, timeout=60
    )
    assert torch.equal(torch.cat(list(loader)), expected)


# ---- shards ----


def _losses_of_half(rank, how, file, results):
    """Train on one of two halves of each batch, with parameters in two shards."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    losses = {}
    for library in (nn, gt):
        torch.manual_seed(0)
        model = _sharded(nn.Sequential(library.LSTM(INPUT, HIDDEN, num_layers=2)), how)
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        losses[library.__name__] = []
        for step in range(4):
            loss = model(random(4, 6, INPUT, seed=step)[:, 3 * rank : 3 * rank + 3])[0].square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[library.__name__].append(loss.detach())
    if rank == 0:
        torch.save(losses, results)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _sharded(model, how):
    from torch.distributed import fsdp

    if how == "fully_shard":
        mesh = torch.distributed.init_device_mesh("cpu", (2,))
        fsdp.fully_shard(model[0], mesh=mesh)
        return fsdp.fully_shard(model, mesh=mesh)
    cpu = torch.device("cpu")
    return fsdp.FullyShardedDataParallel(model, device_id=cpu, use_orig_params=how == "original parameters")


@pytest.mark.parametrize("how", ["fully_shard", "flat parameters", "original parameters"])
def test_fsdp(how, tmp_path):
    """It takes the weights' memory away between calls."""
    results = tmp_path / "losses.pt"
    torch.multiprocessing.spawn(_losses_of_half, (how, str(tmp_path / "meeting"), str(results)), nprocs=2)
    losses = torch.load(results)
    torch.testing.assert_close(losses["gatedrnn.torch"], losses["torch.nn"])
    assert losses["torch.nn"][0] > losses["torch.nn"][-1]
