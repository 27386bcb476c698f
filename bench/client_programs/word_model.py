"""A language model in the style of PyTorch's example word_language_model, with its sizes and updates."""

from __future__ import annotations

import collections
import functools
from pydoc_data import topics

import torch
from torch import Tensor

from client_programs.side import Report

ROUNDS = 40  # updates
_TOLERANCE = 1e-4  # float32, through tens of updates by gradients that are clipped
_WORDS, _SIZE, _LAYERS = 10_000, 200, 2
_ROWS, _STEPS = 20, 35
_GENERATED = 300

State = tuple[Tensor, Tensor]


class Model(torch.nn.Module):
    """An embedding, an LSTM, and scores of all words. Nothing is dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Embedding(_WORDS, _SIZE)
        self.recurrent = torch.nn.LSTM(_SIZE, _SIZE, _LAYERS)
        self.decoder = torch.nn.Linear(_SIZE, _WORDS)
        torch.nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        torch.nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        torch.nn.init.zeros_(self.decoder.bias)

    def forward(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        output, state = self.recurrent(self.encoder(words), state)
        return self.decoder(output), state

    def start(self, rows: int) -> State:
        zeros = torch.zeros(_LAYERS, rows, _SIZE)
        return zeros, zeros


def run(report: Report, rounds: int) -> None:
    """Train, evaluate on text that comes later, and write."""
    torch.manual_seed(0)
    model, text = Model(), _text()
    report.check_classes(model)
    with report.timed("training"):
        losses = _train(model, text, rounds)
    report.add("training loss", losses, _TOLERANCE)
    model.eval()
    with torch.no_grad(), report.timed("prediction"):
        loss = _evaluate(model, text[rounds * _STEPS :], max(rounds // 2, 1))
    report.add("validation loss", [loss], _TOLERANCE)
    with report.timed("generation, a step", _GENERATED):
        _generate(model)
    with report.timed("of it, the LSTM", _GENERATED):
        _step(model)
    with report.fixed(model), report.timed("generation, a step, fixed", _GENERATED):
        _generate(model)
    with report.fixed(model), report.timed("of it, the LSTM, fixed", _GENERATED):
        _step(model)


def _train(model: Model, text: Tensor, updates: int) -> list[float]:
    losses, state = [], model.start(_ROWS)
    for update in range(updates):
        model.zero_grad()
        state = (state[0].detach(), state[1].detach())
        loss, state = _loss(model, text[update * _STEPS :], state)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.add_(parameter.grad, alpha=-20)
        losses.append(float(loss.detach()))
    return losses


def _evaluate(model: Model, text: Tensor, windows: int) -> float:
    total, state = 0.0, model.start(_ROWS)
    for window in range(windows):
        loss, state = _loss(model, text[window * _STEPS :], state)
        total += float(loss)
    return total / windows


def _loss(model: Model, text: Tensor, state: State) -> tuple[Tensor, State]:
    """Return that of the first steps of a text."""
    scores, state = model(text[:_STEPS], state)
    return torch.nn.functional.cross_entropy(scores.flatten(0, 1), text[1 : _STEPS + 1].flatten()), state


@torch.no_grad()
def _generate(model: Model) -> None:
    """Draw one word after the other."""
    torch.manual_seed(0)
    word, state = torch.randint(_WORDS, (1, 1)), model.start(1)
    for _ in range(_GENERATED):
        scores, state = model(word, state)
        word.fill_(torch.multinomial(scores.squeeze().exp(), 1)[0])


@torch.no_grad()
def _step(model: Model) -> None:
    """Take as many steps of the recurrent layers alone: the rest is the score of each word."""
    x, state = torch.zeros(1, 1, _SIZE), model.start(1)
    for _ in range(_GENERATED):
        _, state = model.recurrent(x, state)


@functools.cache
def _text() -> Tensor:
    """Python's own documentation, word for word, in as many columns as there are rows in a batch."""
    words = " ".join(topics.topics.values()).split()
    numbers = {word: i for i, (word, _) in enumerate(collections.Counter(words).most_common(_WORDS - 1))}
    text = torch.tensor([numbers.get(word, _WORDS - 1) for word in words])
    steps = len(text) // _ROWS
    return text[: steps * _ROWS].view(_ROWS, steps).t().contiguous()
