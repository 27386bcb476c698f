"""Text by the character, with textgenrnn: two LSTMs over the last 40 characters, several texts at a time.

pip install ".[models]" && pip install --no-deps textgenrnn && python examples/models/write_text.py

The package itself needs TensorFlow; here only its weights, which CuDNN wrote, and its table of characters
are used. Beside it, the same network with PyTorch's LSTMs.
"""

import importlib.util
import json
import sys
from pathlib import Path

import h5py
import numpy as np
from beside import beside

import gatedrnn as gr

WINDOW = 40
FOLDER = Path(importlib.util.find_spec("textgenrnn").origin).parent


class TextGenRNN:
    """The network, from the package's files."""

    def __init__(self, precision=None):
        path = FOLDER / "textgenrnn_weights.hdf5"
        with h5py.File(path) as file:
            self.embeddings = file["embedding/embedding/embeddings:0"][:]
            self.attention = file["attention/attention/attention_W:0"][:, 0]
            self.kernel, self.bias = (file[f"output/output/{name}:0"][:] for name in ("kernel", "bias"))
        self.layers = [m.to("cpu", precision) for m in gr.from_keras(path).values()]

    def __call__(self, ids):
        """Return scores of the next character, (B, 465), from the last ones, (B, 40)."""
        x = [self.embeddings[ids]]
        for layer in self.layers:
            x.append(layer(x[-1])[0])
        joined = np.concatenate(x, axis=2)
        weights = np.exp(joined @ self.attention)
        mean = (joined * (weights / weights.sum(axis=1, keepdims=True))[..., None]).sum(axis=1)
        return mean @ self.kernel + self.bias


class InPyTorch(TextGenRNN):
    """The same with torch.nn.LSTM."""

    def __init__(self):
        super().__init__()
        import torch

        def layer(module):
            def run(x):
                with torch.inference_mode():
                    return [part.numpy() for part in module(torch.from_numpy(x))[:1]]

            return run

        self.layers = [layer(gr.to_torch(module)) for module in self.layers]


def write(network, count, length, temperature=0.5):
    """Draw `count` texts; the random numbers are the same each time."""
    vocabulary = json.loads((FOLDER / "textgenrnn_vocab.json").read_text())
    characters = {number: character for character, number in vocabulary.items()}
    random = np.random.default_rng(0)
    ids = np.zeros((count, WINDOW + length), int)
    ids[:, WINDOW - 1] = vocabulary["<s>"]
    for step in range(length):
        scores = network(ids[:, step : step + WINDOW]) / temperature
        scores[:, 0] = -np.inf  # stands for nothing
        ids[:, WINDOW + step] = (scores + random.gumbel(size=scores.shape)).argmax(axis=1)
    texts = ("".join(characters[number] for number in row) for row in ids[:, WINDOW:])
    return [text.split("<s>")[0] for text in texts]


def main(count=8, length=100):
    networks = InPyTorch(), TextGenRNN()
    ways = [lambda network=network: write(network, count, length) for network in networks]
    theirs, ours = beside(f"{count} texts of {length} characters", *ways, rounds=1)
    print(*ours, sep="\n")
    print(f"the same: {sum(a == b for a, b in zip(theirs, ours, strict=True))} of {count}")
    for precision in ("bfloat16", "int8"):
        found = write(TextGenRNN(precision), count, length)
        print(f"the same in {precision}: {sum(a == b for a, b in zip(theirs, found, strict=True))}")
    return theirs, ours


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
