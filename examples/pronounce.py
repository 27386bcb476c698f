"""Pronounce English words with the pretrained model of g2p_en.

pip install ".[demo]" && python examples/pronounce.py activationist internationalization
"""

import importlib.util
import itertools
import sys
from pathlib import Path

import numpy as np

import gatedrnn as gr

VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW"
CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH UW"
STRESSED = [vowel + stress for vowel, stress in itertools.product(VOWELS.split(), "012")]
PHONEMES = ["<pad>", "<unk>", "<s>", "</s>", *sorted(STRESSED + CONSONANTS.split())]
LETTERS = {letter: 3 + i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}

package = importlib.util.find_spec("g2p_en")  # finds it without importing it
if package is None or package.origin is None:
    sys.exit('pip install ".[demo]" first')
weights = dict(np.load(Path(package.origin).with_name("checkpoint20.npz"), allow_pickle=False))


def gru(part):
    """Build the encoder ("enc") or the decoder ("dec"); the file's layout is torch's, so is ours."""
    module = gr.GRU(256, 256)
    names = {"weight_ih_l0": "w_ih", "weight_hh_l0": "w_hh", "bias_ih_l0": "b_ih", "bias_hh_l0": "b_hh"}
    module.load_state_dict({ours: weights[f"{part}_{theirs}"] for ours, theirs in names.items()})
    return module


words = [word.lower() for word in sys.argv[1:]] or ["activationist", "gated", "recurrent"]
if not all(word and set(word) <= set(LETTERS) for word in words):
    sys.exit("expected words of letters a-z")
letters = [[LETTERS[letter] for letter in word] + [2] for word in words]  # 2 ends a word
lengths = [len(row) for row in letters]
padded = np.array(list(itertools.zip_longest(*letters, fillvalue=0)))  # (T, B)
_, state = gru("enc")(weights["enc_emb"][padded], lengths=lengths)  # each row stops at its own length

stream = gru("dec").stream(batch_size=len(words))  # all words step together
stream.state = state
spoken = np.full((21, len(words)), PHONEMES.index("<s>"))
for step in range(20):
    hidden = stream.step(weights["dec_emb"][spoken[step]])
    spoken[step + 1] = (hidden @ weights["fc_w"].T + weights["fc_b"]).argmax(axis=1)
for word, symbols in zip(words, spoken[1:].T, strict=True):
    print(word, *itertools.takewhile("</s>".__ne__, (PHONEMES[symbol] for symbol in symbols)))
