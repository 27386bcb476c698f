"""Thai words in Latin letters, with PyThaiNLP's thai2rom: an encoder, and a decoder that attends to it.

pip install ".[models]" && python examples/models/romanize_thai.py

First the package's own code with our sessions; then all words as one batch, which its code cannot do.
"""

import sys

import numpy as np
import onnx
import onnxruntime
from beside import beside
from pythainlp.transliterate.thai2rom_onnx import ThaiTransliterator_ONNX

import gatedrnn as gr
import gatedrnn.onnx

# fmt: off
WORDS = [
    "ภาษาไทย", "แมว", "กรุงเทพ", "โรงเรียน", "อาหาร", "ดนตรี", "ความรัก", "ประเทศ", "น้ำตก", "มหาวิทยาลัย",
]
# fmt: on


def paths_of(package):
    """Return where the package keeps its encoder and its decoder."""
    prefix = "_ThaiTransliterator_ONNX__"
    return [getattr(package, f"{prefix}{part}_filename") for part in ("encoder", "decoder")]


def with_sessions(package):
    """Let the package's own code run our sessions."""
    encoder, decoder = (gatedrnn.onnx.InferenceSession(path) for path in paths_of(package))
    package._network.encoder, package._network.decoder = encoder, decoder
    return package


class Batched:
    """All words at a time: one call of the encoder, with their lengths, and one of the decoder a letter."""

    def __init__(self, package):
        self.package, paths = package, paths_of(package)
        self.encoder, self.decoder = (next(iter(gr.from_onnx(path).values())) for path in paths)
        tensors = [
            {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(p).graph.initializer} for p in paths
        ]
        self.of_encoder, self.of_decoder = tensors

    def romanize(self, words):
        to_ids, letters = self.package._prepare_sequence_in, self.package._ix_to_target_char
        rows = [to_ids(word) for word in words]
        lengths = np.array([len(row) for row in rows])
        ids = np.stack([np.pad(row, (0, lengths.max() - len(row))) for row in rows])
        encoded, (h, _) = self.encoder(self.of_encoder["character_embedding.weight"][ids.T], lengths=lengths)
        encoded, h = encoded.swapaxes(0, 1), np.concatenate(list(h), axis=1)

        w = self.of_decoder
        keys = encoded @ w["attn.attn.weight"].T + w["attn.attn.bias"]
        absent = np.arange(ids.shape[1]) >= lengths[:, None]
        symbols = np.full(len(words), self.package._target_char_to_ix["<start>"])
        end, spelled = self.package._target_char_to_ix["<end>"], []
        while len(spelled) < 100 and not (symbols == end).all():
            scores = np.where(absent, -1e10, np.einsum("bth,bh->bt", keys, h))
            attention = np.exp(scores - scores.max(axis=1, keepdims=True))
            attention /= attention.sum(axis=1, keepdims=True)
            context = np.einsum("bt,bth->bh", attention, encoded)
            x = np.concatenate([context, w["character_embedding.weight"][symbols]], axis=1)
            h = self.decoder(x[None])[0][0]  # its LSTM begins anew at each letter
            found = (h @ w["linear.weight"].T + w["linear.bias"]).argmax(axis=1)
            symbols = np.where(symbols == end, end, found)
            spelled.append(symbols)
        return ["".join(letters[s] for s in row if s != end) for row in np.transpose(spelled)]


def main(words=WORDS):
    onnxruntime.set_default_logger_severity(3)  # of outputs whose shape is not the one that the file says
    before = ThaiTransliterator_ONNX()
    now, batched = with_sessions(ThaiTransliterator_ONNX()), Batched(before)

    def one_by_one(package):
        return [package.romanize(word) for word in words]

    what = f"{len(words)} words"
    theirs, ours = beside(f"{what}, one by one", lambda: one_by_one(before), lambda: one_by_one(now))
    _, together = beside(f"{what}, together", lambda: one_by_one(before), lambda: batched.romanize(words))
    for word, latin in zip(words, together, strict=True):
        print(word, latin)
    for answers in (ours, together):
        print(f"the same: {sum(a == b for a, b in zip(theirs, answers, strict=True))} of {len(words)}")
    return theirs, ours, together


if __name__ == "__main__":
    main(sys.argv[1:] or WORDS)
