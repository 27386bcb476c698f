"""gatedrnn.train's fit, checkpoints and data: resumed runs bit by bit, early stopping, crashes, bad input."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import types

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import gatedrnn as gr
from gatedrnn import train
from gatedrnn.train import loop
from helpers import assert_same_bits, run_python
from test_errors import refused

TOKENS = np.random.default_rng(5).integers(0, 11, 400)


class Run:
    """A small language model with two layers and no recurrence, and all that `fit` needs to train it."""

    def __init__(self, *, dtype=np.float32, seed=7, optimizer=train.Adam, **options):
        self.net = train.Modules(
            embedding=train.Embedding(11, 6, dtype=dtype, seed=1),
            head=train.Linear(6, 11, dtype=dtype, seed=2),
        )
        self.optimizer = optimizer(self.net.parameters(), **options)
        self.rng = np.random.default_rng(seed)

    def batches(self, rng):
        return [(TOKENS[k], TOKENS[k + 1]) for k in train.minibatches(rng, len(TOKENS) - 1, 50)]

    def loss_and_gradients(self, batch):
        inputs, targets = batch
        x, x_tape = self.net.embedding.forward(inputs)
        logits, logits_tape = self.net.head.forward(x)
        loss, d_logits = train.softmax_cross_entropy(logits, targets)
        d_x, d_head = self.net.head.backward(logits_tape, d_logits)
        _, d_embedding = self.net.embedding.backward(x_tape, d_x)
        return loss, self.net.gradients(embedding=d_embedding, head=d_head)

    def validate(self):
        logits = self.net.head(self.net.embedding(TOKENS[:-1]))
        return train.softmax_cross_entropy(logits, TOKENS[1:])[0]

    def fit(self, epochs, **options):
        options = {"rng": self.rng, "progress": False, **options}
        return train.fit(
            self.net, self.optimizer, self.loss_and_gradients, self.batches, epochs=epochs, **options
        )

    def everything(self):
        rng = {"rng": np.frombuffer(json.dumps(self.rng.bit_generator.state).encode(), np.uint8)}
        return {**self.net.state_dict(), **self.optimizer.state_dict(), **rng}


def assert_same_run(actual, expected):
    assert list(actual) == list(expected)
    for name, array in expected.items():
        assert_same_bits(actual[name], array)


class Scripted:
    """A run of one parameter p, whose validations after each epoch are given."""

    def __init__(self, validations):
        self.layer = train.Linear(1, 1, bias=False, dtype=np.float64)
        self.layer.weight[...] = 0
        self.optimizer = train.SGD(self.layer.parameters(), lr=1.0)
        self.validations = iter(validations)
        self.rates = []

    def loss_and_gradients(self, batch):
        self.rates.append(self.optimizer.lr)
        return float(batch), {"weight": np.full((1, 1), -1.0)}  # each step adds lr

    def fit(self, epochs, batches=(1.0,), **options):
        options = {"validate": lambda: next(self.validations), "progress": False, **options}
        return train.fit(
            self.layer,
            self.optimizer,
            self.loss_and_gradients,
            lambda rng: batches,
            epochs=epochs,
            **options,
        )


# ---- training ----


def test_it_learns():
    run = Run(lr=0.05)
    before = run.validate()
    history = run.fit(20)
    assert history.step == 20 * 8
    assert len(history.loss) == 20
    assert history.validation == []
    assert history.best_epoch is None
    assert run.validate() < 0.9 * before
    assert history.loss[-1] < history.loss[0]


def test_loss_is_the_mean_of_the_batches():
    run = Scripted([])
    assert run.fit(2, [1.0, 2.0, 6.0], validate=None).loss == [3.0, 3.0]


def test_the_best_parameters_come_back():
    run = Scripted([3.0, 1.0, 2.0, 1.0, 5.0])
    history = run.fit(5)
    assert history.validation == [3.0, 1.0, 2.0, 1.0, 5.0]
    assert (history.best_epoch, history.epochs_since_best) == (1, 3)
    assert run.layer.weight == 2  # after two steps of 1
    run = Scripted([3.0, 1.0])
    run.fit(2, validate=None)
    assert run.layer.weight == 2


@pytest.mark.parametrize(("patience", "epochs"), [(1, 3), (2, 6), (3, 8), (None, 8)])
def test_early_stopping(patience, epochs):
    run = Scripted([3.0, 1.0, 2.0, 0.5, 0.6, 0.5, 0.1, 0.2])
    history = run.fit(8, patience=patience)
    assert len(history.validation) == epochs


def test_schedule_sets_the_rate_of_each_step():
    run = Scripted([])
    run.fit(2, [1.0, 1.0, 1.0], validate=None, schedule=lambda step: 0.5**step)
    assert run.rates == [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]
    assert run.layer.weight == 2 - 0.03125


def test_max_norm_clips():
    run = Scripted([])
    run.fit(1, [1.0, 1.0], validate=None, max_norm=0.25)
    assert abs(run.layer.weight - 0.5) < 1e-6  # the epsilon of the clipping itself


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_run_that_diverged_stops(value, tmp_path):
    run = Scripted([])
    with pytest.raises(FloatingPointError, match=r"loss: expected a finite number, got .* at step 1"):
        run.fit(1, [1.0, value, 1.0], validate=None)
    assert run.layer.weight == 1
    path = tmp_path / "run"
    run = Scripted([1.0, value])
    with pytest.raises(FloatingPointError, match=r"validate: expected a finite number, got .* at step 2"):
        run.fit(2, checkpoint=path)
    assert train.load_checkpoint(path, run.layer, run.optimizer)[0]["step"] == 1


def test_a_run_whose_gradients_or_parameters_diverged_stops(tmp_path):
    """Though every loss was finite; the checkpoint is that of the epoch before."""
    messages = {1.0: "norm of the gradients: .* at step 1", None: "weight: .* after step 2"}
    for max_norm, message in messages.items():
        path = tmp_path / f"{max_norm}.safetensors"
        run = Scripted([])
        run.fit(1, validate=None, max_norm=max_norm, checkpoint=path)
        run.loss_and_gradients = lambda batch: (1.0, {"weight": np.full((1, 1), math.nan)})
        with pytest.raises(FloatingPointError, match=message):
            run.fit(2, validate=None, max_norm=max_norm, checkpoint=path)
        train.load_checkpoint(path, run.layer, run.optimizer)
        assert abs(run.layer.weight - 1) < 1e-6


# ---- what is shown ----


def test_a_line_for_each_epoch(capsys):
    Scripted([2.0, 1.0, 3.0]).fit(3, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "epoch 1/3  step 1  loss 1  validation 2 (best)",
        "epoch 2/3  step 2  loss 1  validation 1 (best)",
        "epoch 3/3  step 3  loss 1  validation 3",
    ]
    Scripted([2.0]).fit(1, progress=False)
    assert capsys.readouterr().err == ""


def test_with_and_without_tqdm(monkeypatch, capsys):
    """The bar gets the number of batches: theirs, or that of the epoch before; without tqdm there is none."""
    bars = []

    def tqdm(batches, *, total, desc, **options):
        bars.append((desc, total, options["disable"]))
        return batches

    found = importlib.util.find_spec("json")
    monkeypatch.setattr(loop.importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(loop.importlib, "import_module", lambda name: types.SimpleNamespace(tqdm=tqdm))
    run = Scripted([])
    train.fit(
        run.layer,
        run.optimizer,
        run.loss_and_gradients,
        lambda rng: iter([1.0, 2.0]),
        epochs=3,
    )
    Scripted([1.0]).fit(1, [1.0] * 3, progress=True)
    assert bars == [
        ("epoch 1/3", None, None),
        ("epoch 2/3", 2, None),
        ("epoch 3/3", 2, None),
        ("epoch 1/1", 3, None),
    ]
    monkeypatch.setattr(loop.importlib.util, "find_spec", lambda name: None)
    Scripted([1.0]).fit(1, progress=True)
    assert len(bars) == 4
    assert len(capsys.readouterr().err.splitlines()) == 5


def test_the_real_bar_where_there_is_one(capsys):
    pytest.importorskip("tqdm", reason="tqdm is not installed")
    history = Run().fit(2, progress=True)
    assert history.step == 16
    assert [line.split()[:2] for line in capsys.readouterr().err.splitlines()] == [
        ["epoch", "1/2"],
        ["epoch", "2/2"],
    ]


# ---- checkpoint and resume ----

OPTIONS = {
    "adamw": {"optimizer": train.AdamW, "lr": 0.03},
    "sgd": {"optimizer": train.SGD, "lr": 0.3, "momentum": 0.9, "nesterov": True},
    "rmsprop": {"optimizer": train.RMSprop, "momentum": 0.5, "centered": True, "dtype": np.float64},
}
SCHEDULE = train.schedules.cosine(0.05, 48, warmup=5)


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("schedule", [None, SCHEDULE])
def test_resumed_runs_have_the_same_bits(kind, schedule, tmp_path):
    def run_to(epochs, *, validate, seed=7, **options):
        run = Run(seed=seed, **OPTIONS[kind])
        options["validate"] = run.validate if validate else None
        return run, run.fit(epochs, schedule=schedule, max_norm=1.0, **options)

    for validate in (True, False):
        path = tmp_path / f"{validate}.safetensors"
        straight, straight_history = run_to(6, validate=validate)
        run_to(3, validate=validate, checkpoint=path)
        resumed, history = run_to(6, validate=validate, checkpoint=path, seed=99)  # the seed is the file's
        assert history == straight_history
        assert_same_run(resumed.everything(), straight.everything())


@pytest.mark.parametrize("whole", [True, False])
def test_dropout_goes_on_too(whole, tmp_path):
    """In a module alone, and in one of `Modules`."""
    path = tmp_path / "run.safetensors"
    x = np.random.default_rng(0).standard_normal((6, 4, 3), np.float32)

    def run_to(epochs, seed, **options):
        gru = gr.GRU(3, 8, num_layers=2, dropout=0.5, seed=seed)
        net = gru if whole else train.Modules(parts=train.Modules(rnn=gru))
        optimizer = train.Adam(net.parameters())

        def loss_and_gradients(batch):
            output, _, tape = gru.forward(batch)
            loss, d_output = train.mse(output, np.ones_like(output))
            gradients = gru.backward(tape, d_output)[2]
            if not whole:
                gradients = net.gradients(parts=net.parts.gradients(rnn=gradients))
            return loss, gradients

        train.fit(
            net, optimizer, loss_and_gradients, lambda rng: [x, x], epochs=epochs, progress=False, **options
        )
        return net.state_dict()

    straight = run_to(4, 1)
    run_to(2, 1, checkpoint=path)
    assert_same_run(run_to(4, 2, checkpoint=path), straight)  # the seed is the file's


@pytest.mark.parametrize(("before", "after"), [(0.5, 0.0), (0.0, 0.5), (0.5, 0.25)])
def test_dropout_may_change_between_runs(before, after, tmp_path):
    def run(dropout):
        gru = gr.GRU(3, 8, num_layers=2, dropout=dropout, seed=0)
        return gru, train.Adam(gru.parameters())

    path = tmp_path / "run.safetensors"
    saved, optimizer = run(before)
    train.save_checkpoint(path, saved, optimizer)
    loaded, optimizer = run(after)
    loaded.load_state_dict({name: value + 1 for name, value in loaded.state_dict().items()})
    train.load_checkpoint(path, loaded, optimizer)
    assert_same_run(loaded.state_dict(), saved.state_dict())


def damaged(state, path, value):
    """The state with another value at a path."""
    if not path:
        return value
    copy = list(state) if isinstance(state, list) else dict(state)
    copy[path[0]] = damaged(copy[path[0]], path[1:], value)
    return copy


DAMAGES = [
    ("MT19937", ["state", "pos"], 10**9),
    ("MT19937", ["state", "pos"], -1),
    ("MT19937", ["state", "key"], [1]),
    ("MT19937", ["state", "key", 3], -1),
    ("Philox", ["buffer_pos"], -(10**8)),
    ("Philox", ["state", "counter"], [1]),
    ("SFC64", ["state", "state"], [1]),
    ("PCG64", ["state", "state"], -1),
    ("PCG64", ["state", "inc"], 2**200),
    ("PCG64", ["state", "state"], 0.5),
    ("PCG64", ["has_uint32"], True),
    ("PCG64", ["uinteger"], 2**64),
    ("PCG64", ["state"], 3),
]


@pytest.mark.parametrize(("bits", "at", "value"), DAMAGES)
def test_damaged_generators_are_refused(bits, at, value, tmp_path):
    """NumPy takes some of these, and ends the process at the next draw."""
    path, layer = tmp_path / "run.safetensors", train.Linear(2, 2)
    optimizer, kind = train.Adam(layer.parameters()), getattr(np.random, bits)
    train.save_checkpoint(path, layer, optimizer, rng=np.random.Generator(kind(0)))
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    metadata["rng"] = json.dumps(damaged(json.loads(metadata["rng"]), at, value))
    save_file(load_file(path), path, metadata)
    rng = np.random.Generator(kind(5))
    with pytest.raises(ValueError, match=f"run.safetensors: .*rng: .*{bits}"):
        train.load_checkpoint(path, layer, optimizer, rng=rng)
    assert rng.random() == np.random.Generator(kind(5)).random()


NOTES = [{"loss": 3}, {"step": "x", "loss": []}, {"loss": "ab", "validation": [], "step": 0}]


@pytest.mark.parametrize("notes", NOTES)
def test_fit_refuses_notes_of_others(notes, tmp_path):
    path, run = tmp_path / "run", Scripted([])
    train.save_checkpoint(path, run.layer, run.optimizer, notes=notes)
    with pytest.raises(ValueError, match="checkpoint: expected one that fit wrote"):
        run.fit(1, validate=None, checkpoint=path)


def test_fit_refuses_before_it_loads(tmp_path):
    path, run = tmp_path / "run", Scripted([1.0])
    run.fit(1, checkpoint=path)
    other = Scripted([])
    with pytest.raises(ValueError, match="without validation"):
        other.fit(2, validate=None, checkpoint=path)
    assert other.layer.weight == 0


ODD_ARRAYS = [np.array([None]), np.array(["a"]), np.ones(2, complex), np.ones(2, np.longdouble)]


@pytest.mark.parametrize("array", ODD_ARRAYS)
def test_arrays_of_a_checkpoint_are_numbers(array, tmp_path):
    layer = train.Linear(1, 1)
    with pytest.raises(TypeError, match=r"arrays\.odd: expected an array of numbers"):
        train.save_checkpoint(tmp_path / "run", layer, train.Adam(layer.parameters()), arrays={"odd": array})
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_knows_its_best_parameters_and_its_patience(tmp_path):
    """Also when the best epoch was before the interruption, and when there is nothing left to do."""
    path = tmp_path / "run.safetensors"
    first = Scripted([3.0, 1.0, 2.0])
    first.fit(3, checkpoint=path)
    assert first.layer.weight == 2
    for _ in range(2):
        second = Scripted([4.0, 5.0, 6.0])
        history = second.fit(9, checkpoint=path, patience=3)
        assert history.validation == [3.0, 1.0, 2.0, 4.0, 5.0][: len(history.validation)]
        assert len(history.validation) == 5
        assert second.layer.weight == 2
    third = Scripted([0.5])
    assert third.fit(6, checkpoint=path).best_epoch == 5
    assert third.layer.weight == 6  # the last parameters went on, not the best


def test_resumed_in_another_process(tmp_path):
    code = """
import json, sys
import numpy as np
from test_train_loop import Run
run = Run(seed=int(sys.argv[2]), lr=0.03)
run.fit(int(sys.argv[1]), checkpoint=sys.argv[3], validate=run.validate)
print(json.dumps({k: v.tobytes().hex() for k, v in run.everything().items()}))
"""
    run_python(code, 2, 7, tmp_path / "a")
    resumed = run_python(code, 4, 8, tmp_path / "a")
    straight = Run(lr=0.03)
    straight.fit(4, validate=straight.validate)
    assert resumed == {k: v.tobytes().hex() for k, v in straight.everything().items()}


@pytest.mark.parametrize("bits", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_every_generator_goes_on(bits, tmp_path):
    run = Run()
    rng = np.random.Generator(getattr(np.random, bits)(3))
    rng.integers(0, 9, 5, np.int32)  # leaves half of a 64-bit number behind
    train.save_checkpoint(tmp_path / "a", run.net, run.optimizer, rng=rng)
    other = np.random.Generator(getattr(np.random, bits)(4))
    train.load_checkpoint(tmp_path / "a", run.net, run.optimizer, rng=other)
    np.testing.assert_array_equal(
        other.integers(0, 1 << 30, 999, np.int32), rng.integers(0, 1 << 30, 999, np.int32)
    )
    assert other.standard_normal() == rng.standard_normal()


def test_notes_and_arrays_come_back(tmp_path):
    run = Run()
    notes = {"epoch": 3, "losses": [0.1, math.inf], "name": "é"}
    arrays = {"state": np.arange(6.0).reshape(2, 3).T, "scalar": np.array(3), "a.b": np.zeros((0, 2))}
    train.save_checkpoint(tmp_path / "a", run.net, run.optimizer, notes=notes, arrays=arrays)
    got_notes, got_arrays = train.load_checkpoint(tmp_path / "a", run.net, run.optimizer)
    assert got_notes == notes
    assert got_arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert_same_bits(got_arrays[name], array)


def test_the_file_is_plain_safetensors(tmp_path):
    run = Run()
    train.save_checkpoint(tmp_path / "a", run.net, run.optimizer)
    tensors = load_file(tmp_path / "a")
    assert_same_bits(tensors["parameters.head.weight"], run.net.head.weight)
    assert tensors["optimizer.step"] == 0
    assert tensors["optimizer.exp_avg.head.bias"].shape == (11,)


def test_a_crash_leaves_the_old_file(tmp_path, monkeypatch):
    run = Run()
    path = tmp_path / "run.safetensors"
    run.fit(1, checkpoint=path)
    before = path.read_bytes()

    def crash(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", crash)
        with pytest.raises(OSError, match="no space"):
            run.fit(2, checkpoint=path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]
    run.fit(2, checkpoint=path)
    assert path.read_bytes() != before


def test_a_link_stays_a_link(tmp_path):
    run = Run()
    os.symlink("target", tmp_path / "link")
    train.save_checkpoint(tmp_path / "link", run.net, run.optimizer)
    assert os.path.islink(tmp_path / "link")
    train.load_checkpoint(tmp_path / "target", run.net, run.optimizer)


def tampered(path, **changes):
    """Write the checkpoint again with other metadata."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata={**metadata, **changes})


def test_load_checkpoint_refuses_and_changes_nothing(tmp_path):
    path = tmp_path / "run.safetensors"
    saved = Run(lr=0.5)
    saved.fit(1)
    train.save_checkpoint(path, saved.net, saved.optimizer, rng=saved.rng)

    def refuses(run, target=path, error=ValueError, match="run.safetensors: expected a checkpoint"):
        before = run.everything()
        with pytest.raises(error, match=match):
            train.load_checkpoint(target, run.net, run.optimizer, rng=run.rng)
        assert_same_run(run.everything(), before)

    refuses(Run(), tmp_path / "none", FileNotFoundError, "none")
    refuses(Run(optimizer=train.SGD))
    refuses(Run(dtype=np.float64))
    other = Run()
    other.net = train.Modules(embedding=other.net.embedding, head=train.Linear(6, 12))
    refuses(other)
    other = Run()
    other.net = other.net.head
    refuses(other)
    with pytest.raises(ValueError, match="rng: expected the state of a MT19937, got 'PCG64'"):
        train.load_checkpoint(path, saved.net, saved.optimizer, rng=np.random.Generator(np.random.MT19937()))
    content = path.read_bytes()
    for changes in (
        {"format": "gatedrnn"},
        {"format_version": "2"},
        {"notes": "["},
        {"notes": "[]"},
        {"rng": "null"},
        {"rng": '{"bit_generator": "PCG64"}'},
        {"rng": '{"bit_generator": "PCG64", "state": {}, "has_uint32": 0, "uinteger": 0}'},
    ):
        path.write_bytes(content)
        tampered(path, **changes)
        refuses(Run())
    for damaged in (b"", content[:100], content[:-1], b"\xff" * 200):
        path.write_bytes(damaged)
        refuses(Run())
    save_file({"x": np.zeros(1)}, path)
    refuses(Run())


def test_checkpoint_arguments_refused(tmp_path):
    run = Run()
    arguments = run.net, run.optimizer
    for use in (train.save_checkpoint, train.load_checkpoint):
        with refused("path", TypeError):
            use(3, *arguments)
        with refused("module", TypeError):
            use(tmp_path / "a", None, run.optimizer)
        with refused("optimizer", TypeError):
            use(tmp_path / "a", run.net, run.net)
        with refused("rng", TypeError):
            use(tmp_path / "a", *arguments, rng=3)
    with refused("notes", TypeError):
        train.save_checkpoint(tmp_path / "a", *arguments, notes=[1])
    with refused("notes", TypeError):
        train.save_checkpoint(tmp_path / "a", *arguments, notes={"a": object()})
    with refused("arrays", TypeError):
        train.save_checkpoint(tmp_path / "a", *arguments, arrays=[1])
    assert os.listdir(tmp_path) == []


def test_a_checkpoint_that_cannot_be_written_is_found_at_once(tmp_path):
    file = tmp_path / "file"
    file.write_text("no folder")
    for path, error in [
        (tmp_path / "missing" / "run", FileNotFoundError),
        (file / "run", NotADirectoryError),
        (tmp_path, IsADirectoryError),
    ]:
        run = Scripted([])
        with pytest.raises(error, match="missing|file|" + tmp_path.name) as caught:
            run.fit(1, validate=None, checkpoint=path)
        assert ".tmp" not in str(caught.value)
        assert run.rates == []
        with pytest.raises(error):
            train.save_checkpoint(path, run.layer, run.optimizer)
        with pytest.raises(error):
            gr.GRU(1, 1).save(path)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_fit_refuses_another_runs_checkpoint(tmp_path):
    path = tmp_path / "a"
    Scripted([1.0]).fit(1, checkpoint=path)
    with refused("checkpoint", ValueError):
        Scripted([]).fit(2, checkpoint=path, validate=None)
    run = Scripted([1.0])
    run.fit(1, checkpoint=tmp_path / "b", validate=None)
    with refused("checkpoint", ValueError):
        run.fit(2, checkpoint=tmp_path / "b")
    train.save_checkpoint(path, run.layer, run.optimizer, rng=np.random.default_rng(), notes={"mine": 1})
    with refused("checkpoint", ValueError):
        run.fit(2, checkpoint=path)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("epochs", {"epochs": 0}),
        ("epochs", {"epochs": 1.5}),
        ("validate", {"validate": 3}),
        ("patience", {"patience": 0, "validate": lambda: 1.0}),
        ("patience", {"patience": 2.0, "validate": lambda: 1.0}),
        ("patience", {"patience": 3, "validate": None}),
        ("schedule", {"schedule": 0.1}),
        ("max_norm", {"max_norm": -1}),
        ("checkpoint", {"checkpoint": 3}),
        ("rng", {"rng": 3}),
        ("progress", {"progress": 1}),
        ("batches", {"batches": [1]}),
        ("batches", {"batches": lambda rng: []}),
        ("loss_and_gradients", {"loss_and_gradients": None}),
        ("loss", {"loss_and_gradients": lambda batch: (None, {})}),
        ("validate", {"validate": lambda: "low"}),
        ("loss_and_gradients", {"loss_and_gradients": lambda batch: 1.0}),
        ("loss_and_gradients", {"loss_and_gradients": lambda batch: (1.0, {}, {})}),
        ("grads", {"loss_and_gradients": lambda batch: (1.0, {})}),
        ("module", {"module": None}),
        ("optimizer", {"optimizer": 0.1}),
        ("lr", {"schedule": lambda step: -1.0}),
    ],
)
def test_fit_refuses(name, options):
    run = Scripted([])
    arguments = {
        "module": run.layer,
        "optimizer": run.optimizer,
        "loss_and_gradients": run.loss_and_gradients,
        "batches": lambda rng: [1.0],
        "epochs": 1,
        "progress": False,
        **options,
    }
    with refused(name):
        train.fit(**arguments)


# ---- data ----


def test_minibatches():
    batches = list(train.minibatches(None, 7, 3))
    assert [batch.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    shuffled = np.concatenate(list(train.minibatches(np.random.default_rng(0), 1000, 32)))
    assert sorted(shuffled) == list(range(1000))
    assert (np.diff(shuffled) != 1).any()
    again = np.concatenate(list(train.minibatches(np.random.default_rng(0), 1000, 32)))
    np.testing.assert_array_equal(again, shuffled)


def test_minibatches_shuffle_at_once():
    """The generator's state does not depend on when, or whether, the batches are taken."""
    taken, left = np.random.default_rng(0), np.random.default_rng(0)
    list(train.minibatches(taken, 9, 2))
    train.minibatches(left, 9, 2)
    assert taken.bit_generator.state == left.bit_generator.state


def test_token_chunks():
    chunks = list(train.token_chunks(np.arange(16), 3, 2))
    assert [inputs.tolist() for inputs, _ in chunks] == [
        [[0, 7], [1, 8], [2, 9]],
        [[3, 10], [4, 11], [5, 12]],
        [[6, 13]],
    ]
    for inputs, targets in chunks:
        np.testing.assert_array_equal(targets, inputs + 1)


@pytest.mark.parametrize(("count", "batch_size"), [(2, 1), (10, 9), (15, 2), (100, 7)])
def test_token_chunks_leave_out_less_than_a_batch(count, batch_size):
    seen = np.concatenate(
        [targets.T.ravel() for _, targets in train.token_chunks(np.arange(count), 5, batch_size)]
    )
    assert len(set(seen.tolist())) == len(seen)
    assert count - 1 - batch_size < len(seen) <= count - 1


def test_padded():
    batch, lengths = train.padded([np.array([1, 2, 3]), np.array([4])])
    np.testing.assert_array_equal(batch, [[1, 4], [2, 0], [3, 0]])
    np.testing.assert_array_equal(lengths, [3, 1])
    batch, lengths = train.padded([np.ones((2, 5), np.float32), np.ones((0, 5), np.float32)])
    assert (batch.shape, batch.dtype, lengths.tolist()) == ((2, 2, 5), np.float32, [2, 0])
    np.testing.assert_array_equal(batch[:, :, 0] == 1, train.mask_of(lengths, 2))


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("rng", lambda: train.minibatches(3, 5, 2)),
        ("count", lambda: train.minibatches(None, 0, 2)),
        ("batch_size", lambda: train.minibatches(None, 5, 0)),
        ("tokens", lambda: train.token_chunks([1], 1, 1)),
        ("tokens", lambda: train.token_chunks([[1, 2]], 1, 1)),
        ("tokens", lambda: train.token_chunks([1.0, 2.0], 1, 1)),
        ("steps", lambda: train.token_chunks([1, 2, 3], 0, 1)),
        ("batch_size", lambda: train.token_chunks([1, 2, 3], 1, 3)),
        ("sequences", lambda: train.padded([])),
        ("sequences", lambda: train.padded([3, 4])),
        ("sequences", lambda: train.padded([np.ones((2, 3)), np.ones((2, 4))])),
        ("sequences", lambda: train.padded([np.ones(2), np.ones(2, int)])),
    ],
)
def test_data_refused(name, use):
    with refused(name):
        use()
