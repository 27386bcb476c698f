"""Japanese words and their kinds, with nagisa: three bidirectional LSTMs, over characters and over words.

pip install ".[models]" && python examples/models/japanese_words.py
"""

import sys

import numpy as np
from beside import beside
from nagisa.tagger import Tagger

import gatedrnn as gr

SENTENCES = [
    "Pythonで簡単に使えるツールです",
    "門は記憶を選び、必要なことを残し、残りを忘れる。",
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "東京特許許可局の前で、福岡・博多の観光情報を調べた。",
]


def module_of(birnn):
    """Return nagisa's bidirectional LSTM, whose gates stand as DyNet has them, as a module."""
    directions = birnn.layers[0]
    width, H = len(directions[0].WxT), directions[0].h_dim
    parameters = {}
    for suffix, lstm in zip(("_l0", "_l0_reverse"), directions, strict=True):
        weights = {"weight_ih": lstm.WxT, "weight_hh": lstm.WhT, "bias_ih": lstm.b, "bias_hh": 0 * lstm.b}
        for name, value in weights.items():
            parameters[name + suffix] = gr.convert.reorder(value, gates="ifog", layout="columns")
    module = gr.LSTM(width, H, bidirectional=True)
    module.load_state_dict(parameters)
    return module


class Recurrent:
    """What nagisa calls, on a module."""

    layers = ()  # so that nagisa calls `transduce` for words, too, and no shortcut of its own for one layer

    def __init__(self, birnn):
        self.module = module_of(birnn)

    def transduce(self, x):
        return self.module(x)[0]


def with_ours(tagger):
    for name in ("ws_model", "pos_model", "char_seq_model"):
        setattr(tagger._model, name, Recurrent(getattr(tagger._model, name)))
    return tagger


def tagged(tagger, sentences):
    words = [tagger.wakati(sentence) for sentence in sentences]
    return [list(zip(each, tagger.postagging(each), strict=True)) for each in words]


def main(sentences=SENTENCES):
    before, now = Tagger(), with_ours(Tagger())
    for name in ("ws_model", "pos_model"):
        theirs, ours = (getattr(tagger._model, name) for tagger in (before, now))
        width = ours.module.input_size
        x = np.random.default_rng(0).standard_normal((60, width)).astype(np.float32)
        beside(f"{name}, 60 steps", lambda t=theirs, x=x: t.transduce(x), lambda o=ours, x=x: o.transduce(x))
    ways = (lambda: tagged(before, sentences)), (lambda: tagged(now, sentences))
    theirs, ours = beside(f"{len(sentences)} sentences", *ways)
    for sentence in ours:
        print(*(f"{word}/{kind}" for word, kind in sentence))
    print(f"the same: {sum(a == b for a, b in zip(theirs, ours, strict=True))} of {len(sentences)}")
    return theirs, ours


if __name__ == "__main__":
    main(sys.argv[1:] or SENTENCES)
