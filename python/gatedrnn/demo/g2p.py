"""A grapheme-to-phoneme model: English letters in, ARPAbet phonemes out, on two GRUs of gatedrnn.

The weights are those of the package g2p_en (Park and Kim, https://github.com/Kyubyong/g2p, Apache-2.0). An
encoder GRU reads the letters of a word and an end mark; its last state starts a decoder GRU that emits one
phoneme a step, each time the likeliest, until it emits its own end mark or has emitted 20 phonemes.
"""

from __future__ import annotations

import importlib.util
import itertools
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

import gatedrnn as gr

Weights = Mapping[str, npt.NDArray[np.float32]]
Indices = npt.NDArray[np.intp]

GRAPHEMES = ("<pad>", "<unk>", "</s>", *string.ascii_lowercase)
LETTERS_END = GRAPHEMES.index("</s>")
_GRAPHEME_INDEX = {grapheme: index for index, grapheme in enumerate(GRAPHEMES)}
MAX_PHONEMES = 20

# ARPAbet as the CMU Pronouncing Dictionary writes it: vowels carry a stress of 0, 1 or 2 ("UW" also comes
# without). The network's output indices follow the alphabetical order.
_VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW"
_CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH"
_STRESSED = (vowel + stress for vowel, stress in itertools.product(_VOWELS.split(), "012"))
PHONEMES = ("<pad>", "<unk>", "<s>", "</s>", *sorted([*_STRESSED, *_CONSONANTS.split(), "UW"]))
PHONEMES_START, PHONEMES_END = PHONEMES.index("<s>"), PHONEMES.index("</s>")


class ModelNotInstalledError(RuntimeError):
    """The package that carries the weights is not installed."""


def find_package() -> Path:
    """Return the folder of the installed package g2p_en, without importing it.

    Importing g2p_en starts a download of dictionaries that this model does not need.

    Raises:
        ModelNotInstalledError: g2p_en, or its file of weights, is not there.
    """
    spec = importlib.util.find_spec("g2p_en")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (Path(folder) / "checkpoint20.npz").is_file():
            return Path(folder)
    raise ModelNotInstalledError(
        'the pretrained model is not installed: pip install ".[demo]" in the source folder of gatedrnn'
    )


def load_weights(package: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Read the pretrained arrays: ``enc_*`` and ``dec_*`` of embeddings and GRUs, ``fc_*`` of the output."""
    with np.load(package / "checkpoint20.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def gru_state_dict(weights: Weights, part: str) -> dict[str, npt.NDArray[np.float32]]:
    """Name one GRU's arrays as torch.nn does; the layout (3H rows in the order r, z, n) is the same already.

    Args:
        weights: What `load_weights` returned.
        part: ``"enc"`` or ``"dec"``.
    """
    return {
        "weight_ih_l0": weights[f"{part}_w_ih"],
        "weight_hh_l0": weights[f"{part}_w_hh"],
        "bias_ih_l0": weights[f"{part}_b_ih"],
        "bias_hh_l0": weights[f"{part}_b_hh"],
    }


def encode_letters(words: Sequence[str]) -> tuple[Indices, Indices]:
    """Turn words of a-z into padded indices of letters and the number of valid ones.

    Args:
        words: B words, each of letters a-z only (`words.check_word` makes sure of that).

    Returns:
        Indices (T, B), T being the longest word and its end mark, padded with 0; and lengths (B,).
    """
    lengths = np.array([len(word) + 1 for word in words], dtype=np.intp)
    letters = np.zeros((int(lengths.max(initial=1)), len(words)), dtype=np.intp)
    for column, word in enumerate(words):
        letters[: len(word), column] = [_GRAPHEME_INDEX[letter] for letter in word]
        letters[len(word), column] = LETTERS_END
    return letters, lengths


def decode_phonemes(spoken: list[list[int]]) -> list[list[str]]:
    """Turn each word's indices of phonemes into their names, up to the first end mark."""
    return [[PHONEMES[i] for i in itertools.takewhile(PHONEMES_END.__ne__, row)] for row in spoken]


class Pronouncer:
    """The pretrained model on gatedrnn; call it with words, get their phonemes."""

    def __init__(self, weights: Weights) -> None:
        """Build encoder and decoder from what `load_weights` returned."""
        self._letters, self._phonemes = weights["enc_emb"], weights["dec_emb"]
        self._output_weight, self._output_bias = weights["fc_w"].T, weights["fc_b"]
        self._encoder, self._decoder = (_build_gru(weights, part) for part in ("enc", "dec"))

    def __call__(self, words: Sequence[str]) -> list[list[str]]:
        """Pronounce a batch of words.

        Args:
            words: Words of letters a-z, of any lengths and in any order.

        Returns:
            For each word its phonemes, at most 20, for instance ``["HH", "AH0", "L", "OW1"]``.
        """
        letters, lengths = encode_letters(words)
        _, state = self._encoder(self._letters[letters], lengths=lengths)
        spoken = np.full((len(words), MAX_PHONEMES), PHONEMES_END)
        rows = np.arange(len(words))
        symbols = np.full(len(words), PHONEMES_START)
        for step in range(MAX_PHONEMES):
            output, state = self._decoder(self._phonemes[symbols][np.newaxis], state)
            symbols = (output[0] @ self._output_weight + self._output_bias).argmax(axis=1)
            # Words that have ended leave the batch, so the last steps cost only what the longest words need.
            going = symbols != PHONEMES_END
            rows, symbols, state = rows[going], symbols[going], state[:, going]
            if not rows.size:
                break
            spoken[rows, step] = symbols
        return decode_phonemes(spoken.tolist())


def _build_gru(weights: Weights, part: str) -> gr.GRU:
    rows, input_size = weights[f"{part}_w_ih"].shape
    gru = gr.GRU(input_size, rows // 3)
    gru.load_state_dict(gru_state_dict(weights, part))
    return gru
