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


def run(name, model, corpus, epochs):
    """Train; return the losses of the updates, the perplexities of the epochs, and the seconds."""
    rng, losses, perplexities = np.random.default_rng(0), [], []
    start = time.perf_counter()
    for epoch in range(1, epochs + 1):
        state, first = None, len(losses)
        for inputs, targets in pieces(corpus, rng):
            loss, state = model.update(inputs, targets, state)
            losses.append(loss)
        perplexities.append(float(np.exp(np.mean(losses[first:]))))
        if epoch % max(1, epochs // 10) == 0:
            seconds = time.perf_counter() - start
            print(f"{name} epoch {epoch}  perplexity {perplexities[-1]:.4f}  {seconds:.1f} s", flush=True)
    return losses, perplexities, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description="Train the textbook's character model.")
    parser.add_argument("text", help="The Time Machine as a plain-text file")
    parser.add_argument("--cell", choices=CELLS, default="gru")
    parser.add_argument("--epochs", type=int, default=500)
    parser.add_argument("--threads", type=int, default=gr.get_num_threads())
    parser.add_argument("--compare-torch", action="store_true", help="then train the same in PyTorch")
    parser.add_argument("--curve", help="write perplexities and seconds to this JSON file")
    options = parser.parse_args()

    gr.set_num_threads(options.threads)
    vocabulary, corpus = read(options.text)
    model = Model(options.cell, len(vocabulary))
    parameters = model.net.state_dict()
    losses, perplexities, seconds = run("gatedrnn", model, corpus, options.epochs)
    curves = {"gatedrnn": perplexities, "seconds": seconds}
    reached = next((epoch for epoch, value in enumerate(perplexities, 1) if value <= 1.1), "none")
    print(f"perplexity {perplexities[-1]:.4f} at the end; first epoch with at most 1.1: {reached}")
    print(model.continued("time traveller ", 50, vocabulary))
    if options.compare_torch:
        from time_machine_torch import TorchModel

        theirs = TorchModel(options.cell, parameters, options.threads)
        their_losses, their_perplexities, their_seconds = run("PyTorch", theirs, corpus, options.epochs)
        curves |= {"torch": their_perplexities, "torch_seconds": their_seconds}
        difference = np.abs(np.subtract(losses[:100], their_losses[:100])).max()
        print(f"losses of the first {len(losses[:100])} updates: differ by at most {difference:.1e}")
        print(f"threads {options.threads}: PyTorch's seconds / ours = {their_seconds / seconds:.2f}")
    if options.curve:
        Path(options.curve).write_text(json.dumps(curves), encoding="utf-8")


if __name__ == "__main__":
    main()
