"""gatedrnn.train's fit: what it learns and shows, early stopping, runs that diverge."""

from __future__ import annotations

import importlib.util
import math
import types

import numpy as np
import pytest

from gatedrnn import _optional, train
from training_runs import Run, Scripted, assert_same_run

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


VALIDATIONS = [0.3, 0.5, 0.4, 0.7, 0.7, 0.6]


@pytest.mark.parametrize(("mode", "best", "since"), [("min", 0, 5), ("max", 3, 2)])
def test_mode_says_which_validation_is_the_best(mode, best, since):
    run = Scripted(VALIDATIONS)
    history = run.fit(6, mode=mode)
    assert (history.best_epoch, history.epochs_since_best) == (best, since)
    assert run.layer.weight == best + 1
    assert len(Scripted(VALIDATIONS).fit(6, mode=mode, patience=2).loss) == {"min": 3, "max": 6}[mode]


def test_a_checkpoint_remembers_the_mode(tmp_path):
    path = tmp_path / "run"
    Scripted(VALIDATIONS).fit(2, mode="max", checkpoint=path)
    other = Scripted(VALIDATIONS)
    with pytest.raises(ValueError, match="checkpoint: expected a run with mode='min', got one with 'max'"):
        other.fit(3, checkpoint=path)
    assert other.layer.weight == 0
    history = other.fit(3, mode="max", checkpoint=path)
    assert (history.validation, history.best_epoch) == ([0.3, 0.5, 0.3], 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_run_that_diverged_stops(value, tmp_path):
    run = Scripted([])
    with pytest.raises(
        FloatingPointError, match=r"loss: .* finite number, got .* at step 1, batch 2 of epoch 1"
    ):
        run.fit(1, [1.0, value, 1.0], validate=None)
    assert run.layer.weight == 1
    path = tmp_path / "run"
    run = Scripted([1.0, value])
    with pytest.raises(FloatingPointError, match=r"validate: expected a finite number, got .* after step 2"):
        run.fit(2, checkpoint=path)
    assert train.load_checkpoint(path, run.layer, run.optimizer)[0]["step"] == 1


@pytest.mark.parametrize("max_norm", [1.0, None])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_reaches_nothing(max_norm, value, tmp_path):
    """Though its loss was finite; the checkpoint is that of the epoch before."""
    path = tmp_path / "run"

    def schedule(step):
        return 1.0 / (step + 1)

    run = Run()
    run.fit(1, max_norm=max_norm, checkpoint=path)
    before, computed, count = [], run.loss_and_gradients, iter(range(99))

    def loss_and_gradients(batch):
        loss, grads = computed(batch)
        if next(count) == 2:
            grads["head.bias"][3] = value
            before.append(run.everything())
        return loss, grads

    run.loss_and_gradients = loss_and_gradients
    message = "gradient of head.bias: expected finite numbers, got .* at step 10, batch 3 of epoch 2"
    with pytest.raises(FloatingPointError, match=message):
        run.fit(2, max_norm=max_norm, checkpoint=path, schedule=schedule)
    before[0]["lr"] = np.array(schedule(9))  # that of the last update
    assert_same_run(run.everything(), before[0])
    assert train.load_checkpoint(path, run.net, run.optimizer)[0]["step"] == 8


def test_a_norm_that_is_not_finite_reaches_nothing():
    run = Scripted([])
    run.loss_and_gradients = lambda batch: (1.0, {"weight": np.full((1, 1), 1e200)})
    with pytest.raises(FloatingPointError, match=r"norm of the gradients: .* at step 0, batch 1 of epoch 1"):
        run.fit(1, validate=None, max_norm=1.0)
    assert (run.layer.weight, run.optimizer.steps) == (0, 0)


def test_parameters_that_an_update_made_infinite_are_found(tmp_path):
    path, run = tmp_path / "run", Scripted([])
    run.fit(1, validate=None, checkpoint=path)
    run.loss_and_gradients = lambda batch: (1.0, {"weight": np.full((1, 1), -1e308)})
    with (
        np.errstate(over="ignore"),
        pytest.raises(FloatingPointError, match=r"weight: .* after step 2"),
    ):
        run.fit(2, validate=None, schedule=lambda step: 2.0, checkpoint=path)
    train.load_checkpoint(path, run.layer, run.optimizer)
    assert run.layer.weight == 1


# ---- what is shown ----


def test_a_line_for_each_epoch(capsys):
    Scripted([2.0, 1.0, 3.0]).fit(3, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "epoch 1/3  step 1  loss 1  validation 2 (best, lower is better)",
        "epoch 2/3  step 2  loss 1  validation 1 (best, lower is better)",
        "epoch 3/3  step 3  loss 1  validation 3 (best 1, lower is better)",
    ]
    Scripted([0.5, 0.4, 0.9]).fit(3, mode="max", patience=1, progress=True)
    assert capsys.readouterr().err.splitlines() == [
        "epoch 1/3  step 1  loss 1  validation 0.5 (best, higher is better)",
        "epoch 2/3  step 2  loss 1  validation 0.4 (best 0.5, higher is better)",
        "stopped: no higher validation in 1 epochs than 0.5 in epoch 1",
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
    monkeypatch.setattr(_optional.importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(_optional.importlib, "import_module", lambda name: types.SimpleNamespace(tqdm=tqdm))
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
    monkeypatch.setattr(_optional.importlib.util, "find_spec", lambda name: None)
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
