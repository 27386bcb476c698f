"""darts: two models of its tutorial on recurrent networks, in float64 as there, on series made here."""

from __future__ import annotations

from typing import Any

import numpy as np
from darts import TimeSeries
from darts.models import BlockRNNModel, RNNModel

from client_programs.side import Report

ROUNDS = 2  # epochs of the larger model
_TOLERANCE = 1e-9  # float64, through hundreds of updates
_PREDICTIONS = 10
_TRAINER = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
_COMMON = {"dropout": 0, "optimizer_kwargs": {"lr": 1e-3}, "random_state": 0, "pl_trainer_kwargs": _TRAINER}


def run(report: Report, rounds: int) -> None:
    """Fit an LSTM that predicts month by month, and a GRU that predicts a block of months at once."""
    sizes: dict[str, Any] = {"hidden_dim": 20, "batch_size": 16, "training_length": 20}
    lstm = RNNModel(model="LSTM", input_chunk_length=14, n_epochs=20 * rounds, **sizes, **_COMMON)
    _fit(report, "RNNModel LSTM", lstm, _series(132, 12), 36)
    sizes = {"hidden_dim": 10, "batch_size": 32, "output_chunk_length": 36}
    gru = BlockRNNModel(model="GRU", input_chunk_length=125, n_epochs=rounds, **sizes, **_COMMON)
    _fit(report, "BlockRNNModel GRU", gru, _series(2000, 125), 360)


def _fit(report: Report, name: str, model: Any, series: TimeSeries, ahead: int) -> None:
    with report.timed(f"{name} training"):
        model.fit(series)
    report.check_classes(model.model)
    report.add(f"{name} loss", [model.trainer.callback_metrics["train_loss"]], _TOLERANCE)
    with report.timed(f"{name} prediction", _PREDICTIONS):
        for _ in range(_PREDICTIONS):
            predicted = model.predict(ahead)
    report.add(f"{name} predictions", predicted.values().ravel(), _TOLERANCE)


def _series(months: int, period: int) -> TimeSeries:
    """A trend, a period and noise, between 0 and 1."""
    time = np.arange(months)
    noise = np.random.default_rng(0).normal(0, 0.02, months)
    wave = np.sin(2 * np.pi * time / period)
    return TimeSeries.from_values(0.4 * time / months + 0.25 * (1 + wave) + noise)
