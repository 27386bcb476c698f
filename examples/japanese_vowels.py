"""Who is speaking? Nine men say /ae/; the recordings are 7 to 29 frames long, and stay as long as they are.

pip install ".[examples]" && python examples/japanese_vowels.py

The data set JapaneseVowels (Kudo, Toyama & Shimbo 1999) comes with the package aeon: 270 recordings to train
on, 370 to test on, 12 cepstrum coefficients a frame. A bidirectional GRU reads each row up to its own length;
its two final states, one from each end, go into a linear layer.
"""

import argparse

import numpy as np
from aeon.datasets import load_japanese_vowels

import gatedrnn as gr
from gatedrnn import train

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--checkpoint", help="safetensors file to save the run to, and to go on from")
options = parser.parse_args()
rng = np.random.default_rng(options.seed)

recordings, speakers = load_japanese_vowels("train")
order = rng.permutation(len(recordings))
# Statistics of what is trained on, nothing else.
frames = np.concatenate([recordings[k].T for k in order[54:]])
mean, deviation = frames.mean(axis=0), frames.std(axis=0)


def batch_of(recordings, speakers, indices):
    """Frames (T, B, 12), the rows' lengths (B,), and the speakers 0..8 (B,)."""
    rows = [((recordings[k].T - mean) / deviation).astype(np.float32) for k in indices]
    return *train.padded(rows), np.array([int(speakers[k]) - 1 for k in indices])


net = train.Modules(
    rnn=gr.GRU(12, 64, bidirectional=True, seed=options.seed), head=train.Linear(2 * 64, 9, seed=options.seed)
)


def scores(state):
    """Both directions' final states (2, B, 64), side by side (B, 128)."""
    return np.concatenate(list(state), axis=1)


def loss_and_gradients(batch):
    x, lengths, targets = batch
    _, state, rnn_tape = net.rnn.forward(x, lengths=lengths)
    logits, head_tape = net.head.forward(scores(state))
    loss, d_logits = train.softmax_cross_entropy(logits, targets)
    d_both, d_head = net.head.backward(head_tape, d_logits)
    d_state = np.stack(np.split(d_both, 2, axis=1))
    _, _, d_rnn = net.rnn.backward(rnn_tape, None, d_state, input_gradient=False)
    return loss, net.gradients(rnn=d_rnn, head=d_head)


def evaluate(batch):
    """Loss and accuracy."""
    x, lengths, targets = batch
    logits = net.head(scores(net.rnn(x, lengths=lengths)[1]))
    return train.softmax_cross_entropy(logits, targets)[0], np.mean(logits.argmax(axis=1) == targets)


held_out = batch_of(recordings, speakers, order[:54])
history = train.fit(
    net,
    train.AdamW(net.parameters(), lr=3e-3),
    loss_and_gradients,
    lambda rng: [batch_of(recordings, speakers, order[54:][k]) for k in train.minibatches(rng, 216, 16)],
    epochs=100,
    validate=lambda: evaluate(held_out)[0],
    patience=15,
    max_norm=1.0,
    checkpoint=options.checkpoint,
    rng=rng,
)
test_recordings, test_speakers = load_japanese_vowels("test")
_, accuracy = evaluate(batch_of(test_recordings, test_speakers, range(len(test_recordings))))
print(f"test accuracy {accuracy:.4f}, parameters of epoch {history.best_epoch + 1} of {len(history.loss)}")
