"""Training without a framework: layers, losses, optimisers, schedules, and a loop with checkpoints.

Nothing here differentiates for you: every forward has a backward, and you call them in reverse order. A
language model of bytes, trained by truncated back-propagation through time::

    import numpy as np
    import gatedrnn as gr
    from gatedrnn import train

    tokens = np.fromfile("text.txt", np.uint8)
    training, held_out = np.split(tokens, [len(tokens) * 9 // 10])
    net = train.Modules(
        embedding=train.Embedding(256, 64), rnn=gr.LSTM(64, 256), head=train.Linear(256, 256)
    )

    def batches(rng):
        global state
        state = None  # an epoch starts at the start of the text
        return train.token_chunks(training, steps=100, batch_size=32)

    def loss_and_gradients(batch):
        global state
        inputs, targets = batch
        x, x_tape = net.embedding.forward(inputs)
        h, state, h_tape = net.rnn.forward(x, state)
        logits, logits_tape = net.head.forward(h)
        loss, d_logits = train.softmax_cross_entropy(logits, targets)
        d_h, d_head = net.head.backward(logits_tape, d_logits)
        d_x, _, d_rnn = net.rnn.backward(h_tape, d_h)
        _, d_embedding = net.embedding.backward(x_tape, d_x)
        return loss, net.gradients(embedding=d_embedding, rnn=d_rnn, head=d_head)

    def validate():
        h, _ = net.rnn(net.embedding(held_out[:-1, None]))
        return train.softmax_cross_entropy(net.head(h), held_out[1:, None])[0]

    optimizer = train.AdamW(net.parameters())
    train.fit(
        net, optimizer, loss_and_gradients, batches, epochs=20, validate=validate, patience=3, max_norm=1.0,
        schedule=train.schedules.cosine(2e-3, steps=20 * (len(training) // 3200)),
        checkpoint="language_model.safetensors",
    )

Run again after an interruption (Ctrl-C, too), it goes on from the file.
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
