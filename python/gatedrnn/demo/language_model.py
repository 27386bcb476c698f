"""A character language model: trained here and now, saved, loaded again, and continued one step at a time.

An embedding, one recurrent layer and a linear layer that predicts the next character, trained by truncated
back-propagation through time with AdamW. The text is the prose of Python's own documentation, or any other.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import gatedrnn as gr
from gatedrnn import _files, train
from gatedrnn._optional import installed

Array = npt.NDArray[np.floating[Any]]
Tokens = npt.NDArray[np.integer[Any]]
State = Any  # an array, or for LSTM the pair (h, c)

CELLS: dict[str, Callable[..., gr.LSTM | gr.GRU]] = {
    "lstm": gr.LSTM,
    "gru": gr.GRU,
    "gru-reset-before": lambda *sizes, **options: gr.GRU(*sizes, reset_after=False, **options),
}
UNKNOWN = "\ufffd"  # stands for every character that is not in the vocabulary
MIN_CHARACTERS = 2000

_EMBEDDING_SIZE = 64
_MAX_VOCABULARY = 256
_BATCH_SIZE, _STEPS = 32, 64
_HELD_OUT = 0.05
_RATE = 6e-3
_MAX_NORM = 1.0
_TEMPERATURE = 0.6
_RECENT = 50  # updates, whose mean loss is printed
_FORMAT = "gatedrnn.demo.language_model"


def documentation_text() -> str:
    """Return the prose of Python's language reference, one paragraph a line.

    The text is the one behind Python's ``help()``; it differs a little between Python releases. Code, grammar
    and headings are left out: a paragraph starts with a capital letter and ends with a full stop or a colon.
    """
    from pydoc_data.topics import topics

    paragraphs = (" ".join(each.split()) for each in re.split(r"\n\s*\n", "\n".join(topics.values())))
    return "\n".join(each for each in paragraphs if re.fullmatch(r"[A-Z].*[.:]", each))


def read_text(path: Path) -> str:
    """Return a file's text.

    Args:
        path: A file in UTF-8; bytes that are none become U+FFFD.

    Raises:
        OSError: The file cannot be read.
        ValueError: It has fewer than 2000 characters.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    if len(text) < MIN_CHARACTERS:
        raise ValueError(f"text: expected at least {MIN_CHARACTERS} characters, got {len(text)} in {path}")
    return text


def vocabulary_of(text: str) -> str:
    """Return U+FFFD and the text's characters in order, the 255 most frequent ones where there are more."""
    frequent = Counter(text.replace(UNKNOWN, "")).most_common(_MAX_VOCABULARY - 1)
    return UNKNOWN + "".join(sorted(character for character, _ in frequent))


class CharacterModel:
    """Characters in, scores of the next character out.

    Args:
        cell: A key of `CELLS`.
        hidden_size: Number of hidden units, H.
        vocabulary: V characters, of which the first stands for all others.
        seed: Decides the initial parameters.
    """

    def __init__(self, cell: str, hidden_size: int, vocabulary: str, seed: int = 0) -> None:
        self.cell, self.vocabulary = cell, vocabulary
        self._index = {character: index for index, character in enumerate(vocabulary)}
        self.net = train.Modules(
            embedding=train.Embedding(len(vocabulary), _EMBEDDING_SIZE, seed=seed),
            rnn=CELLS[cell](_EMBEDDING_SIZE, hidden_size, seed=seed),
            head=train.Linear(hidden_size, len(vocabulary), seed=seed),
        )

    def encode(self, text: str) -> Tokens:
        """Turn characters into their indices in the vocabulary."""
        return np.array([self._index.get(character, 0) for character in text], np.intp)

    def loss_and_gradients(
        self, inputs: Tokens, targets: Tokens, state: State
    ) -> tuple[float, dict[str, Array], State]:
        """Go forward and back over one chunk.

        Args:
            inputs: (T, B).
            targets: (T, B).
            state: The final state of the chunk before; None for zeros.

        Returns:
            The mean loss in nats, the gradients by parameter, and the final state.
        """
        net = self.net
        x, x_tape = net.embedding.forward(inputs)
        hidden, state, hidden_tape = net.rnn.forward(x, state)
        logits, logits_tape = net.head.forward(hidden)
        loss, d_logits = train.softmax_cross_entropy(logits, targets)
        d_hidden, d_head = net.head.backward(logits_tape, d_logits)
        d_x, _, d_rnn = net.rnn.backward(hidden_tape, d_hidden)
        _, d_embedding = net.embedding.backward(x_tape, d_x)
        return loss, net.gradients(embedding=d_embedding, rnn=d_rnn, head=d_head), state

    def loss(self, tokens: Tokens) -> float:
        """Return the mean loss in nats of each next token, over `_BATCH_SIZE` rows that start from zeros."""
        (inputs, targets), *_ = train.token_chunks(tokens, len(tokens), _BATCH_SIZE)
        hidden, _ = self.net.rnn(self.net.embedding(inputs))
        return train.softmax_cross_entropy(self.net.head(hidden), targets)[0]

    def save(self, path: Path) -> None:
        """Write everything to a safetensors file; any reader of safetensors can read the tensors."""
        config = {"cell": self.cell, "vocabulary": self.vocabulary}
        _files.write(path, _FORMAT, self.net.state_dict(), {"config": json.dumps(config)})

    @classmethod
    def load(cls, path: Path) -> CharacterModel:
        """Make the model that was saved.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is none that `save` wrote.
        """
        with _files.reading(path, _FORMAT, "a language model of this demo") as (file, metadata):
            config, tensors = json.loads(metadata["config"]), _files.tensors_of(file)
            model = cls(config["cell"], tensors["head.weight"].shape[1], config["vocabulary"])
            model.net.load_state_dict(tensors)
        return model


class Writer:
    """Goes on with a text, one streaming step a character.

    Args:
        model: Whose parameters to use.
        text: What was written so far, at least one character. It is read in one call.
        rng: Draws the characters.
        temperature: Above 0; the lower, the more often the likeliest character is taken.
    """

    def __init__(
        self, model: CharacterModel, text: str, rng: np.random.Generator, temperature: float = _TEMPERATURE
    ) -> None:
        self.text = text
        self.stream = model.net.rnn.stream()
        self._model, self._rng, self._temperature = model, rng, temperature
        read = model.encode(text[:-1])
        if read.size:
            _, self.stream.state = model.net.rnn(model.net.embedding(read[:, np.newaxis]))

    def write(self, count: int) -> str:
        """Draw `count` more characters and return them."""
        net, vocabulary, read = self._model.net, self._model.vocabulary, len(self.text)
        for _ in range(count):
            hidden = self.stream.step(net.embedding(self._model.encode(self.text[-1])))
            self.text += vocabulary[self._draw(net.head(hidden)[0])]
        return self.text[read:]

    def _draw(self, logits: Array) -> int:
        weights = np.exp((logits - logits.max()).astype(np.float64) / self._temperature)
        weights[0] = 0  # never write the mark for unknown characters
        sums = weights.cumsum()
        return int(np.searchsorted(sums, self._rng.random() * sums[-1], side="right"))


@dataclass(frozen=True)
class Budget:
    """How long to train: so many epochs where given, else so many seconds."""

    seconds: float
    epochs: int | None = None


@dataclass
class Curve:
    """What training went through.

    Attributes:
        loss: Of each update, in nats per character.
        held_out: Pairs (updates so far, loss on held-out text).
        characters: How many characters were trained on, repetitions included.
        seconds: The time that the updates took.
    """

    loss: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    characters: int = 0
    seconds: float = 0.0


def fit(
    model: CharacterModel,
    tokens: Tokens,
    budget: Budget,
    report: Callable[[Curve, float], None] | None = None,
) -> Curve:
    """Train until the budget is spent; hold the last 5 % of the text out.

    Args:
        model: What is trained.
        tokens: The text as `encode` returned it.
        budget: When to stop. The learning rate falls to 0 along with what is left of it, so where it is in
            seconds no two runs are alike; with epochs they are.
        report: Called about ten times with the curve so far and the share of the budget that is spent.
    """
    split = len(tokens) - max(_BATCH_SIZE + 1, int(_HELD_OUT * len(tokens)))
    training, held_out = tokens[:split], tokens[split:]
    optimizer = train.AdamW(model.net.parameters())
    rate = train.schedules.cosine(_RATE, steps=1000, warmup=20)
    curve, reported, epoch = Curve(), 0, 0
    start = time.perf_counter()
    while True:
        chunks, state = list(train.token_chunks(training, _STEPS, _BATCH_SIZE)), None
        for number, (inputs, targets) in enumerate(chunks):
            share = _share(budget, curve, epoch + number / len(chunks))
            if share * 10 >= reported + 1 or share >= 1:
                reported = int(share * 10)
                curve.held_out.append((len(curve.loss), model.loss(held_out)))
                if report is not None:
                    report(curve, share)
            if share >= 1:
                return curve
            optimizer.lr = rate(int(1000 * share))
            loss, grads, state = model.loss_and_gradients(inputs, targets, state)
            train.clip_grad_norm(grads, _MAX_NORM)
            optimizer.step(grads)
            curve.loss.append(loss)
            curve.characters += inputs.size
            curve.seconds = time.perf_counter() - start
        epoch += 1


def _share(budget: Budget, curve: Curve, epochs: float) -> float:
    spent = curve.seconds / budget.seconds if budget.epochs is None else epochs / budget.epochs
    return min(1.0, spent)


def print_progress(curve: Curve, share: float) -> None:
    """Print one line: loss and perplexity of the last updates and of the held-out text, and the speed."""
    recent = curve.loss[-_RECENT:]
    loss, held_out = math.fsum(recent) / len(recent), curve.held_out[-1][1]
    print(
        f"  {share:4.0%}  {curve.seconds:5.1f} s  update {len(curve.loss):5}  loss {loss:.3f}  "
        f"perplexity {math.exp(loss):6.2f}  held out {math.exp(held_out):6.2f}  "
        f"{curve.characters / max(curve.seconds, 1e-9):8,.0f} tokens/s",
        flush=True,
    )


def draw(curve: Curve, path: Path, title: str) -> None:
    """Draw the loss over the updates as a PNG. Needs matplotlib."""
    figure = importlib.import_module("matplotlib.figure").Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        range(1, len(curve.loss) + 1), curve.loss, linewidth=0.5, alpha=0.5, label="training, each update"
    )
    updates, losses = zip(*curve.held_out, strict=True)
    axes.plot(updates, losses, "o-", label="held-out text")
    axes.set(xlabel="updates", ylabel="loss, nats per character", title=title)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


@dataclass(frozen=True)
class Task:
    """What ``gatedrnn demo --train`` was asked to do; `text` None is the documentation."""

    text: Path | None
    out: Path
    cell: str
    hidden_size: int
    budget: Budget
    quiet: bool = False


def run(task: Task) -> None:
    """Train, write, save, load, go on writing, and say what happened.

    Raises:
        OSError: The text cannot be read, or the folder cannot be written to.
        ValueError: The text is too short.
    """
    text = documentation_text() if task.text is None else read_text(task.text)
    task.out.mkdir(parents=True, exist_ok=True)
    model = CharacterModel(task.cell, task.hidden_size, vocabulary_of(text))
    source = "Python's own documentation (pydoc_data.topics)" if task.text is None else str(task.text)
    name, threads = f"{task.cell.upper()} of {task.hidden_size} units", gr.get_num_threads()
    print(
        f"training a character language model, {name}, on {len(text):,} characters of {source}\n"
        f"with {threads} thread{'s' * (threads > 1)}; perplexity of the last {_RECENT} updates, "
        f"and of the last {_HELD_OUT:.0%} of the text, held out\n"
    )
    curve = fit(model, model.encode(text), task.budget, None if task.quiet else print_progress)
    print(f"\nheld-out perplexity {math.exp(curve.held_out[-1][1]):.2f} after {curve.seconds:.0f} s")
    written = _write_and_continue(model, _prompt(model.vocabulary), task.out / "language_model.safetensors")
    (task.out / "sample.txt").write_text(written, encoding="utf-8")
    saved = ["language_model.safetensors", "sample.txt"]
    if installed("matplotlib"):
        draw(curve, task.out / "loss.png", f"{name}, {curve.characters / curve.seconds:,.0f} tokens/s")
        saved.append("loss.png")
    print(f"\nin {task.out}: {', '.join(saved)}")


def _prompt(vocabulary: str) -> str:
    return "The " if set("The ") <= set(vocabulary) else vocabulary[1]


def _write_and_continue(model: CharacterModel, prompt: str, path: Path, count: int = 300) -> str:
    """Print a sample, save and load the model, and print how the loaded one goes on.

    Raises:
        RuntimeError: The loaded model goes on otherwise than the one that was saved, which would be an error
            of this package.
    """
    rng = np.random.default_rng(1)
    writer = Writer(model, prompt, rng)
    start = time.perf_counter()
    writer.write(count)
    rate = count / (time.perf_counter() - start)
    print(f"\nit writes, one streaming step a character ({rate:,.0f} characters/s):\n\n{writer.text}")
    model.save(path)
    loaded_rng = np.random.default_rng()
    loaded_rng.bit_generator.state = rng.bit_generator.state
    loaded = Writer(CharacterModel.load(path), writer.text, loaded_rng)
    more = loaded.write(count)
    print(f"\nsaved, loaded again, given that text to read in one call, it goes on:\n\n...{more}")
    if more != writer.write(count) or not _same_bits(loaded.stream.state, writer.stream.state):
        raise RuntimeError("the loaded model went on otherwise than the one that was saved")
    print(
        "\nthe one that was not saved goes on with the same characters, and ends in a state of the same bits"
    )
    return loaded.text


def _same_bits(state: State, other: State) -> bool:
    pairs = zip(_arrays(state), _arrays(other), strict=True)
    return all(a.tobytes() == b.tobytes() for a, b in pairs)


def _arrays(state: State) -> Sequence[Array]:
    return state if isinstance(state, tuple) else (state,)
