"""The vowel points of Hebrew text, with Nakdimon: two bidirectional LSTMs whose directions are summed.

pip install ".[models]" && pip install --no-deps nakdimon && python examples/models/hebrew_vowels.py

The package itself needs TensorFlow 2.15; here only its model and its tables of letters are used.
"""

import sys
from importlib.resources import files

import h5py
import numpy as np
from nakdimon import dataset, hebrew

import gatedrnn as gr

SENTENCES = ["שלום עולם, זה משפט לדוגמה בעברית.", "הילדים הלכו לבית הספר בבוקר.", "מה שלומך היום?"]


class Nakdimon:
    """The network, from the package's file."""

    def __init__(self, precision=None):
        path = files("nakdimon") / "Nakdimon.h5"
        with h5py.File(path) as file:
            weights = file["model_weights"]
            self.letters = weights["embedding/embedding/embeddings:0"][:]
            names = ("dense", "N", "D", "S")
            self.dense = {n: [weights[f"{n}/{n}/{w}:0"][:] for w in ("kernel", "bias")] for n in names}
        self.lower, self.upper = (m.to("cpu", precision) for m in gr.from_keras(path).values())

    def __call__(self, ids, lengths):
        """Return scores of vowels, dots and points of sin, each (B, T, classes)."""
        below, _ = self.lower(self.letters[ids], lengths=lengths)
        output, _ = self.upper(below, lengths=lengths)
        hidden = output @ self.dense["dense"][0] + self.dense["dense"][1]
        return [hidden @ self.dense[name][0] + self.dense[name][1] for name in "NDS"]


def dotted(sentences, network):
    """Return sentences with their points, all computed as one batch."""
    longest = max(map(len, sentences)) + 10
    data = [dataset.Data.from_text(hebrew.iterate_dotted_text(text), longest) for text in sentences]
    texts, ids = (np.concatenate([getattr(d, name) for d in data]) for name in ("text", "normalized"))
    lengths = (ids != 0).sum(axis=1)
    scores = network(ids[:, : lengths.max()], lengths)
    return dataset.merge(texts, ids, *(each.argmax(axis=2) for each in scores))


def main(sentences=SENTENCES):
    answers = dotted(sentences, Nakdimon())
    print(*answers, sep="\n")
    for precision in ("bfloat16", "int8"):
        found = dotted(sentences, Nakdimon(precision))
        print(f"the same in {precision}: {sum(a == b for a, b in zip(answers, found, strict=True))}")
    return answers


if __name__ == "__main__":
    main(sys.argv[1:] or SENTENCES)
