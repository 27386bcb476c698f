"""What the documentation shows, as a typed program: mypy checks this file, and it runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import gatedrnn as gr
from gatedrnn import train

Array = npt.NDArray[np.floating[Any]]


def test_lstm() -> None:
    lstm = gr.LSTM(4, 8, num_layers=2, dtype="float64", seed=0)
    x: Array = np.zeros((5, 3, 4))
    output, (h, c) = lstm(x)
    output, (h, c) = lstm(x, (h, None), lengths=[1, 5, 0])
    output, state = lstm(x, state=(None, c), out=output)
    output, state, tape = lstm.forward(x, state, recompute=True)
    size: int = tape.nbytes
    d_x, (d_h, d_c), gradients = lstm.backward(tape, None, (h, None))
    total: Array = d_x + d_h.sum() + d_c.sum()
    _, _, same = lstm.backward(tape, output, accumulate_into=gradients, input_gradient=False)
    assert same is gradients
    assert size > 0
    assert total.shape == x.shape


def test_gru_and_stream() -> None:
    gru = gr.GRU(4, 8, reset_after=False)
    x: npt.NDArray[np.float32] = np.zeros((5, 3, 4), np.float32)
    output, state = gru(x)
    stream = gru.stream(3)
    steps: list[Array] = [stream.step(x_t) for x_t in x]
    last: Array = stream.state
    stream.state = None
    stream.state = state
    stream.reset([0, 2])
    assert np.array_equal(steps[-1], output[-1])
    assert np.array_equal(last, state)


def run_over(module: gr.LSTM | gr.GRU | gr.RNN, x: Array) -> Array:
    output: Array = module(x)[0]
    return output


def keep(tape: gr.Tape, stream: gr.Stream[Array, Array]) -> tuple[gr.Tape, gr.Stream[Array, Array]]:
    return tape, stream


@gr.num_threads(1)
def count() -> int:
    return gr.get_num_threads()


def test_the_rest() -> None:
    rnn = gr.RNN(4, 8, nonlinearity="relu")
    x = np.zeros((5, 3, 4), np.float32)
    tape, stream = keep(rnn.forward(x)[2], rnn.stream())
    assert run_over(rnn, x).shape == (5, 3, 8)
    assert tape.nbytes > 0
    assert stream.batch_size == 1
    assert count() == 1
    with gr.num_threads(2):
        assert gr.get_num_threads() == 2
    net = train.Modules(rnn=rnn, head=train.Linear(8, 2))
    optimizer = train.AdamW(net.parameters(), lr=1e-3)
    logits, head_tape = net.head.forward(rnn(x)[0])
    loss, d_logits = train.softmax_cross_entropy(logits, np.zeros((5, 3), np.int64))
    d_output, d_head = net.head.backward(head_tape, d_logits)
    d_rnn = rnn.backward(tape, d_output, input_gradient=False)[2]
    optimizer.step(net.gradients(rnn=d_rnn, head=d_head))
    assert loss > 0
