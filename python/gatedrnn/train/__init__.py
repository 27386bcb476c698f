"""Training without a framework: layers, losses, optimisers, schedules, and a loop with checkpoints.

Nothing here differentiates for you: every forward has a backward, and you call them in reverse order::

    net = train.Modules(rnn=gr.GRU(8, 32), head=train.Linear(32, 1))

    def loss_and_gradients(batch):
        x, target = batch
        h, _, h_tape = net.rnn.forward(x)
        y, y_tape = net.head.forward(h)
        loss, d_y = train.mse(y, target)
        d_h, d_head = net.head.backward(y_tape, d_y)
        _, _, d_rnn = net.rnn.backward(h_tape, d_h)
        return loss, net.gradients(rnn=d_rnn, head=d_head)

    def batches(rng):
        return ((x[:, rows], targets[:, rows]) for rows in train.minibatches(rng, x.shape[1], 32))

    optimizer = train.AdamW(net.parameters())
    train.fit(net, optimizer, loss_and_gradients, batches, epochs=20, checkpoint="run.safetensors")

Run again after an interruption (Ctrl-C, too), it goes on from the file. docs/training.md has a language model
that is trained by truncated back-propagation through time.
"""

from __future__ import annotations

from gatedrnn.train import schedules
from gatedrnn.train.checkpoints import load_checkpoint, save_checkpoint
from gatedrnn.train.clipping import clip_grad_norm
from gatedrnn.train.data import minibatches, padded, token_chunks
from gatedrnn.train.history import History
from gatedrnn.train.layers import Embedding, Linear, Tape
from gatedrnn.train.loop import fit
from gatedrnn.train.losses import binary_cross_entropy, mask_of, mse, softmax_cross_entropy
from gatedrnn.train.modules import Module, Modules
from gatedrnn.train.optimizers import SGD, Adam, AdamW, Optimizer, RMSprop

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Embedding",
    "History",
    "Linear",
    "Module",
    "Modules",
    "Optimizer",
    "RMSprop",
    "Tape",
    "binary_cross_entropy",
    "clip_grad_norm",
    "fit",
    "load_checkpoint",
    "mask_of",
    "minibatches",
    "mse",
    "padded",
    "save_checkpoint",
    "schedules",
    "softmax_cross_entropy",
    "token_chunks",
]
