"""gatedrnn.train's fit: what it learns and shows, early stopping, runs that diverge."""

from __future__ import annotations

import importlib.util
import math
import types

import numpy as np
import pytest

from gatedrnn import train
from gatedrnn.train import loop
from training_runs import Run, Scripted

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
