"""The character model of Dive into Deep Learning (Zhang, Lipton, Li & Smola), chapters on GRU and LSTM.

python time_machine.py TEXT --cell gru

TEXT is The Time Machine by H. G. Wells in any plain-text edition. As in the book: its first 10 000 letters
and spaces, one-hot, 256 hidden units, 32 rows in pieces of 35 steps, SGD with learning rate 1, gradients
clipped to norm 1. The initial parameters are uniform in +-1/sqrt(256), as in the book's concise version.
"""

import argparse
import json
import os
import re
import time
from pathlib import Path

# Between two calls NumPy's own threads would go on spinning, on the cores that the engine then needs.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

import gatedrnn as gr
from gatedrnn import train

HIDDEN, BATCH_SIZE, STEPS, CHARACTERS = 256, 32, 35, 10_000
CELLS = {
    "lstm": lambda inputs: gr.LSTM(inputs, HIDDEN, seed=0),
    "gru": lambda inputs: gr.GRU(inputs, HIDDEN, seed=0),
    "gru-reset-before": lambda inputs: gr.GRU(inputs, HIDDEN, reset_after=False, seed=0),
}


def read(path):
    """The characters in use, after "<unk>", and the first 10 000 of the text as their numbers."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    text = "".join(re.sub("[^A-Za-z]+", " ", line).strip().lower() for line in lines)
    vocabulary = ["<unk>", *sorted(set(text))]
    return vocabulary, np.array([vocabulary.index(character) for character in text[:CHARACTERS]])


def pieces(corpus, rng):
    """An epoch from a random start; each piece goes on where the last ended; a shorter rest is left out."""
    chunks = train.token_chunks(corpus[rng.integers(STEPS, endpoint=True) :], STEPS, BATCH_SIZE)
    return [chunk for chunk in chunks if len(chunk[0]) == STEPS]


class Model:
    def __init__(self, cell, classes):
        self.one_hot = np.eye(classes, dtype=np.float32)
        self.net = train.Modules(rnn=CELLS[cell](classes), head=train.Linear(HIDDEN, classes, seed=1))
        self.optimizer = train.SGD(self.net.parameters(), lr=1.0)

    def update(self, inputs, targets, state):
        net = self.net
        hidden, state, rnn_tape = net.rnn.forward(self.one_hot[inputs], state)
        logits, head_tape = net.head.forward(hidden)
        loss, d_logits = train.softmax_cross_entropy(logits, targets)
        d_hidden, d_head = net.head.backward(head_tape, d_logits)
        _, _, d_rnn = net.rnn.backward(rnn_tape, d_hidden, input_gradient=False)
        grads = net.gradients(rnn=d_rnn, head=d_head)
        train.clip_grad_norm(grads, 1.0)
        self.optimizer.step(grads)
        return loss, state  # arrays: the next piece starts from them, and its backward ends at them

    def continued(self, text, count, vocabulary):
        """The text and the likeliest characters after it, one streaming step each."""
        stream, start = self.net.rnn.stream(), len(text) - 1
        for position in range(start + count):
            hidden = stream.step(self.one_hot[[vocabulary.index(text[position])]])
            if position >= start:
                text += vocabulary[self.net.head(hidden).argmax()]
        return text


class Run:
    """A model with its losses of the updates, its perplexities and its seconds of the epochs."""

    def __init__(self, name, model):
        self.name, self.model = name, model
        self.losses, self.perplexities, self.seconds = [], [], []

    def epoch(self, chunks):
        start, state, losses = time.perf_counter(), None, []
        for inputs, targets in chunks:
            loss, state = self.model.update(inputs, targets, state)
            losses.append(loss)
        self.seconds.append(time.perf_counter() - start)
        self.losses += losses
        self.perplexities.append(float(np.exp(np.mean(losses))))

    def report(self):
        passed = f"epoch {len(self.seconds)}  perplexity {self.perplexities[-1]:.4f}"
        print(f"{self.name} {passed}  {sum(self.seconds):.1f} s", flush=True)


def train_in_turns(runs, corpus, epochs):
    """An epoch of each run in turn, so that a machine whose speed changes serves all of them alike."""
    rng = np.random.default_rng(0)
    for epoch in range(1, epochs + 1):
        chunks = pieces(corpus, rng)
        for run in runs:
            run.epoch(chunks)
            if epoch % max(1, epochs // 10) == 0:
                run.report()


def compare(ours, theirs, threads):
    count = min(100, len(ours.losses))
    difference = np.abs(np.subtract(ours.losses[:count], theirs.losses[:count])).max()
    print(f"losses of the first {count} updates: differ by at most {difference:.1e}")
    ratio = np.median(np.divide(theirs.seconds, ours.seconds))
    total = sum(theirs.seconds) / sum(ours.seconds)
    print(f"threads {threads}: PyTorch's seconds / ours = {total:.2f}, in the median epoch {ratio:.2f}")


def main():
    parser = argparse.ArgumentParser(description="Train the textbook's character model.")
    parser.add_argument("text", help="The Time Machine as a plain-text file")
    parser.add_argument("--cell", choices=CELLS, default="gru")
    parser.add_argument("--epochs", type=int, default=500)
    parser.add_argument("--threads", type=int, default=gr.get_num_threads())
    parser.add_argument("--compare-torch", action="store_true", help="train the same in PyTorch, in turns")
    parser.add_argument("--curve", help="write perplexities and seconds to this JSON file")
    options = parser.parse_args()

    gr.set_num_threads(options.threads)
    vocabulary, corpus = read(options.text)
    ours = Run("gatedrnn", Model(options.cell, len(vocabulary)))
    runs = [ours]
    if options.compare_torch:
        from time_machine_torch import TorchModel

        parameters = ours.model.net.state_dict()
        runs.append(Run("PyTorch", TorchModel(options.cell, parameters, options.threads)))
    train_in_turns(runs, corpus, options.epochs)

    reached = next((epoch for epoch, value in enumerate(ours.perplexities, 1) if value <= 1.1), "none")
    print(f"perplexity {ours.perplexities[-1]:.4f} at the end; first epoch with at most 1.1: {reached}")
    print(ours.model.continued("time traveller ", 50, vocabulary))
    if options.compare_torch:
        compare(*runs, options.threads)
    if options.curve:
        curves = {run.name: {"perplexities": run.perplexities, "seconds": run.seconds} for run in runs}
        Path(options.curve).write_text(json.dumps(curves), encoding="utf-8")


if __name__ == "__main__":
    main()
