"""LSTM, GRU, RNN and their cells for PyTorch on the CPU: ``torch.nn``'s modules, computed by our engine.

::

    from gatedrnn.torch import GRU  # instead of: from torch.nn import GRU

    gru = GRU(80, 256, num_layers=2, batch_first=True)
    output, h_n = gru(x)
    output.sum().backward()

Constructors, parameters, state dictionaries, calls and results are those of ``torch.nn``. In addition there
are ``lengths=`` for padded batches, ``GRU(reset_after=False)`` and ``LSTM(peephole=True, coupled=True)``.
`accelerate` replaces torch.nn's modules within a whole model, and `restore` puts them back. See
docs/pytorch.md.
"""

from __future__ import annotations

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError(f"gatedrnn.torch needs PyTorch ({error}): 'pip install torch'") from error

from gatedrnn.torch import _dynamo, _threads
from gatedrnn.torch._accelerate import accelerate, inspect, restore
from gatedrnn.torch._cells import GRUCell, LSTMCell, RNNCell
from gatedrnn.torch._fixed import fixed
from gatedrnn.torch._modules import GRU, LSTM, RNN

_threads.borrow()
_dynamo.let_dynamo_in()
for _cls in (GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell):
    _cls.__module__ = __name__  # so that pickles go on if files here do not

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]
__all__ += ["accelerate", "fixed", "inspect", "restore"]
