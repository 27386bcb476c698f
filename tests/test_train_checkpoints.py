"""Checkpoints: a resumed run has the bits of one that went through, and bad files are refused."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import gatedrnn as gr
from gatedrnn import train
from helpers import assert_same_bits, run_python
from test_errors import refused
from training_runs import Run, Scripted, assert_same_run

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
from training_runs import Run
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
        ("mode", {"mode": "best", "validate": lambda: 1.0}),
        ("mode", {"mode": None, "validate": lambda: 1.0}),
        ("mode", {"mode": "max"}),
        ("batches", {"batches": lambda rng: 3}),
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
