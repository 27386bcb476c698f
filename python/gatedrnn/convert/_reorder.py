"""Gates in another order, matrices the other way round, an update gate of the other sense."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gatedrnn import _checks

if TYPE_CHECKING:
    import numpy.typing as npt

# Ours are torch.nn's. Other libraries have other letters for the same gate.
_ORDERS = {"lstm": ("ifgo", "igo"), "gru": ("rzn",)}
_OTHER_LETTERS = {"lstm": {"c": "g"}, "gru": {"u": "z", "h": "n", "c": "n"}}


def reorder(
    weights: npt.ArrayLike, *, gates: str, layout: str = "rows", z: str = "old"
) -> npt.NDArray[np.floating[Any]]:
    """Bring a weight or bias of all gates into the order and layout of our modules, which are ``torch.nn``'s.

    ====================  ==========  ===========  =========
    library               LSTM        GRU          layout
    ====================  ==========  ===========  =========
    PyTorch               "ifgo"      "rzn"        "rows"
    ONNX                  "iofc"      "zrh"        "rows"
    Keras, TensorFlow 2   "ifco"      "zrh"        "columns"
    cuDNN                 "ifgo"      "rzn"        "rows"
    oneDNN                "ifco"      "urh"        "columns"
    OpenVINO              "fico"      "zrh"        "rows"
    PaddlePaddle          "ifgo"      "rzn"        "rows"
    Core ML               "ifoc"                   "rows"
    DyNet                 "ifog"                   "rows"
    ====================  ==========  ===========  =========

    Args:
        weights: A matrix (G*H, X) with `layout` "rows", used as x @ W.T, or (X, G*H) with "columns", used as
            x @ W; or a bias (G*H,), whose layout does not matter. Any floating dtype.
        gates: The gates' letters in the order in which they stand: i, f, g (or c) and o of an LSTM, i, g, o
            where f is 1 - i; r, z (or u) and n (or h, or c) of a GRU.
        layout: "rows" or "columns".
        z: What the update gate multiplies: "old" for h' = z h + (1 - z) n, as here and nearly everywhere;
            "new" for h' = (1 - z) h + z n, as in Haiku and PaddlePaddle's operator. As 1 - s(a) = s(-a), the
            gate's numbers then change their sign.

    Returns:
        A new array (G*H, X), or (G*H,), of the same dtype.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: One has a value outside its range, or the array's size is no multiple of the gates'.
    """
    layout = _checks.choice("layout", layout, ("rows", "columns"))
    z = _checks.choice("z", z, ("old", "new"))
    order, letters = _checked_gates(gates)
    if z == "new" and "z" not in order:
        raise ValueError(f"z: expected 'old' for gates without an update gate, got {z!r}")
    array = _checks.foreign_array("weights", np.asarray(weights) if isinstance(weights, list) else weights)
    if array.ndim not in (1, 2):
        raise ValueError(f"weights: expected a matrix or a vector, got shape {array.shape}")
    rows = array.T if array.ndim == 2 and layout == "columns" else array
    if len(rows) % len(letters) or not rows.size:
        expected = f"a multiple of {len(letters)} {layout if array.ndim == 2 else 'values'}"
        raise ValueError(f"weights: expected {expected}, got shape {array.shape}")
    blocks = dict(zip(letters, np.split(rows, len(letters)), strict=True))
    if z == "new":
        blocks["z"] = -blocks["z"]
    return np.ascontiguousarray(np.concatenate([blocks[letter] for letter in order]))


def _checked_gates(gates: object) -> tuple[str, str]:
    """Return our order, and the letters as they stand, each written as in ours."""
    if not isinstance(gates, str):
        raise TypeError(f"gates: expected letters such as 'ifgo' or 'zrh', got {_checks.described(gates)}")
    for cell, others in _OTHER_LETTERS.items():
        letters = "".join(others.get(letter, letter) for letter in gates.lower())
        for order in _ORDERS[cell]:
            if sorted(letters) == sorted(order):
                return order, letters
    expected = "the letters i, f, g, o, or i, g, o, or r, z, n in some order"
    raise ValueError(f"gates: expected {expected}, got {_checks.shortened(gates)}")
