"""The same model computed by others, to compare with: g2p_en's own NumPy code and PyTorch's ``nn.GRU``."""

from __future__ import annotations

import ast
import importlib
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gatedrnn.demo import g2p

# What predicting a word needs of class G2p: the network, and the tables of symbols that its __init__ sets up.
REFERENCE_METHODS = ("predict", "encode", "gru", "grucell", "sigmoid", "load_variables")
_TABLES = {"graphemes", "phonemes", "g2idx", "idx2g", "p2idx", "idx2p"}


def load_reference(package: Path) -> Any:
    """Return an object with g2p_en's own methods, compiled from the installed source.

    Importing g2p_en imports nltk and starts a download. So this takes only class ``G2p`` from the installed
    ``g2p.py``, of it only `REFERENCE_METHODS` and the symbol tables that its ``__init__`` sets, compiles them
    unchanged and loads the weights.

    Args:
        package: The folder of g2p_en.

    Returns:
        An instance of that class; ``predict(word)`` returns a list of phonemes.

    Raises:
        RuntimeError: The source does not have these methods (another release of g2p_en).
    """
    path = package / "g2p.py"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its regular expressions have an invalid escape
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    model = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "G2p"), None)
    methods = [node for node in model.body if isinstance(node, ast.FunctionDef)] if model else []
    missing = {"__init__", *REFERENCE_METHODS} - {method.name for method in methods}
    if model is None or missing:
        raise RuntimeError(
            f"{path}: expected class G2p with {', '.join(sorted(missing))}; install g2p_en 2.1.0"
        )
    model.body = [method for method in methods if method.name in {"__init__", *REFERENCE_METHODS}]
    for method in methods:
        if method.name == "__init__":
            method.body = [statement for statement in method.body if _sets_table(statement)]
    namespace: dict[str, Any] = {"np": np, "os": os, "dirname": str(package)}
    exec(compile(ast.Module(body=[model], type_ignores=[]), str(path), "exec"), namespace)
    reference = namespace["G2p"]()
    reference.load_variables()
    reference.variables.close()
    return reference


def _sets_table(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign) and all(
        isinstance(target, ast.Attribute) and target.attr in _TABLES for target in statement.targets
    )


def torch_pronouncer(weights: g2p.Weights) -> Callable[[Sequence[str]], list[list[str]]]:
    """Return a function like `g2p.Pronouncer`, computed by PyTorch's ``nn.GRU`` with a packed sequence.

    Raises:
        ImportError: PyTorch is not installed.
    """
    torch = importlib.import_module("torch")
    pack = importlib.import_module("torch.nn.utils.rnn").pack_padded_sequence
    tensors = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}

    def build(part: str) -> Any:
        rows, input_size = weights[f"{part}_w_ih"].shape
        gru = torch.nn.GRU(input_size, rows // 3)
        state = g2p.gru_state_dict(weights, part)
        gru.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
        return gru.eval()

    encoder, decoder = build("enc"), build("dec")

    def pronounce(words: Sequence[str]) -> list[list[str]]:
        letters, lengths = (torch.from_numpy(array) for array in g2p.encode_letters(words))
        _, state = encoder(pack(tensors["enc_emb"][letters], lengths, enforce_sorted=False))
        spoken = torch.full((len(words), g2p.MAX_PHONEMES), g2p.PHONEMES_END)
        rows = torch.arange(len(words))
        symbols = torch.full((len(words),), g2p.PHONEMES_START)
        for step in range(g2p.MAX_PHONEMES):
            output, state = decoder(tensors["dec_emb"][symbols].unsqueeze(0), state)
            symbols = torch.addmm(tensors["fc_b"], output[0], tensors["fc_w"].T).argmax(dim=1)
            going = symbols != g2p.PHONEMES_END
            rows, symbols, state = rows[going], symbols[going], state[:, going]
            if not len(rows):
                break
            spoken[rows, step] = symbols
        return g2p.decode_phonemes(spoken.tolist())

    without_gradients: Callable[[Sequence[str]], list[list[str]]] = torch.inference_mode()(pronounce)
    return without_gradients
