"""skorch: classifiers of sentences, an LSTM and a GRU, as scikit-learn's estimators."""

from __future__ import annotations

import numpy as np
import torch
from skorch import NeuralNetClassifier

from client_programs.side import Report

ROUNDS = 3  # epochs
_TOLERANCE = 1e-4  # float32, through tens of updates by Adam
_WORDS, _LENGTH, _ROWS = 1000, 50, 1000


class Classifier(torch.nn.Module):
    """Two classes, from the last state of a recurrent layer of 128 units over an embedding."""

    def __init__(self, layer: str, size: int = 128) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(_WORDS, size)
        self.recurrent = getattr(torch.nn, layer)(size, size, batch_first=True)
        self.linear = torch.nn.Linear(size, 2)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        output, _ = self.recurrent(self.embedding(words))
        return torch.softmax(self.linear(output[:, -1]), dim=-1)


def run(report: Report, rounds: int) -> None:
    """Fit and predict with both layers."""
    rng = np.random.default_rng(0)
    words = rng.integers(0, _WORDS, (_ROWS, _LENGTH))
    classes = (words[:, -10:].mean(axis=1) > _WORDS / 2).astype(np.int64)
    for layer in ("LSTM", "GRU"):
        torch.manual_seed(0)
        net = NeuralNetClassifier(
            Classifier, module__layer=layer, max_epochs=rounds, optimizer=torch.optim.Adam, lr=1e-3, verbose=0
        )
        with report.timed(f"{layer} training"):
            net.fit(words, classes)
        report.check_classes(net.module_)
        report.add(f"{layer} training loss", net.history[:, "train_loss"], _TOLERANCE)
        report.add(f"{layer} validation loss", net.history[:, "valid_loss"], _TOLERANCE)
        with report.timed(f"{layer} prediction"):
            chances = net.predict_proba(words)
        report.add(f"{layer} predictions", chances[:, 1], _TOLERANCE)
