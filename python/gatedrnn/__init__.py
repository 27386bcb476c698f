"""LSTM, GRU and RNN on the CPU: NumPy in, NumPy out, with the interface of ``torch.nn``.

::

    import gatedrnn as gr

    module = gr.GRU(input_size, hidden_size)
    module.load_state_dict(torch_module.state_dict())
    output, state = module(x)  # x: (T, B, input_size)
"""

from __future__ import annotations

try:
    from gatedrnn import _core
except ImportError as error:
    # The extension itself refuses an instruction set that this machine lacks, and says so. What else fails is
    # the install.
    if "GATEDRNN_ISA" in str(error):
        raise
    raise ImportError(
        f"gatedrnn cannot load its compiled part, gatedrnn._core: {error}. Python may have found the source "
        "folder instead of an installed package, or the package was built for another Python or machine. "
        "Install it again, from its source folder: 'pip install --force-reinstall .'"
    ) from error

from gatedrnn import _config, convert
from gatedrnn._cells import GRUCell, LSTMCell, RNNCell
from gatedrnn._config import get_num_threads, num_threads, set_num_threads, show_config
from gatedrnn._core import Stream, Tape
from gatedrnn._modules import GRU, LSTM, RNN, load
from gatedrnn.convert import from_flax, from_keras, from_onnx, from_torch, load_parameters, to_torch

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Stream",
    "Tape",
    "convert",
    "from_flax",
    "from_keras",
    "from_onnx",
    "from_torch",
    "get_num_threads",
    "load",
    "load_parameters",
    "num_threads",
    "set_num_threads",
    "show_config",
    "to_torch",
]

__version__: str = _core.__version__

_config.warn_of_baseline()
