"""pytorch-forecasting: DeepAR as in its tutorial, whose layers are subclasses of torch.nn's LSTM and GRU."""

from __future__ import annotations

import functools
from typing import Any

import lightning.pytorch as lightning
from pytorch_forecasting import DeepAR, NormalDistributionLoss, TimeSeriesDataSet
from pytorch_forecasting.data.examples import generate_ar_data

from client_programs.side import Report

ROUNDS = 40  # updates
_TOLERANCE = 1e-4  # float32, through tens of updates at a rate of 0.01, and what is drawn from that
_QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def run(report: Report, rounds: int) -> None:
    """Fit, and predict by drawing paths step by step, with both layers."""
    data = _dataset()
    for layer in ("LSTM", "GRU"):
        lightning.seed_everything(0)
        model: Any = DeepAR.from_dataset(
            data,
            cell_type=layer,
            hidden_size=30,
            rnn_layers=2,
            dropout=0.0,
            learning_rate=1e-2,
            loss=NormalDistributionLoss(),
            optimizer="adam",
        )
        report.check_classes(model)
        trainer = lightning.Trainer(max_steps=rounds, gradient_clip_val=0.1, **_QUIET)
        with report.timed(f"{layer} training"):
            trainer.fit(model, data.to_dataloader(train=True, batch_size=128))
        report.add(f"{layer} loss", [trainer.callback_metrics["train_loss_step"]], _TOLERANCE)
        newest = TimeSeriesDataSet.from_dataset(data, _series(), predict=True)
        loader = newest.to_dataloader(train=False, batch_size=128)
        with report.timed(f"{layer} prediction"):
            predicted = model.predict(loader, trainer_kwargs=dict(_QUIET))  # it writes into it
        report.add(f"{layer} predictions", predicted.ravel(), _TOLERANCE)


def _dataset() -> TimeSeriesDataSet:
    return TimeSeriesDataSet(
        _series(),
        time_idx="time_idx",
        target="value",
        group_ids=["series"],
        static_categoricals=["series"],
        time_varying_unknown_reals=["value"],
        max_encoder_length=60,
        max_prediction_length=20,
    )


@functools.cache
def _series() -> Any:
    data = generate_ar_data(seasonality=10.0, timesteps=400, n_series=100, seed=42)
    return data.astype({"series": str, "value": "float32"})
