"""Thai words in Latin letters, with PyThaiNLP's thai2rom: an encoder, and a decoder that attends to it.

pip install ".[models]" && python examples/models/romanize_thai.py
"""

import sys

from beside import beside
from pythainlp.transliterate.thai2rom_onnx import ThaiTransliterator_ONNX

import gatedrnn.onnx

WORDS = ["ภาษาไทย", "แมว", "กรุงเทพ", "โรงเรียน", "อาหาร", "ดนตรี", "ความรัก", "ประเทศ", "น้ำตก", "มหาวิทยาลัย"]


def main(words=WORDS):
    before, now = ThaiTransliterator_ONNX(), ThaiTransliterator_ONNX()
    for part in ("encoder", "decoder"):
        path = getattr(now, f"_ThaiTransliterator_ONNX__{part}_filename")
        setattr(now._network, part, gatedrnn.onnx.InferenceSession(path))

    def all_words(model):
        return [model.romanize(word) for word in words]

    theirs, ours = beside(f"{len(words)} words", lambda: all_words(before), lambda: all_words(now))
    for word, spelled in zip(words, ours, strict=True):
        print(word, spelled)
    print(f"the same: {sum(a == b for a, b in zip(theirs, ours, strict=True))} of {len(words)}")
    return theirs, ours


if __name__ == "__main__":
    main(sys.argv[1:] or WORDS)
