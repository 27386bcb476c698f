"""Signals are answered in the middle of a call, and what comes after is as if the call had never been."""

from __future__ import annotations

import os
import sys

import pytest

from helpers import run_python

posix = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals on this system")

# A call that takes long, by a module large enough for several threads; a signal soon after it began.
PREPARE = """
import json, signal, sys, threading, time
import numpy as np
import gatedrnn as gr
from helpers import build, normal

gr.set_num_threads(int(sys.argv[1]))
module = build("lstm", 16, 512, num_layers=2)
short = normal((20, int(sys.argv[2]), 16))
output, state, tape = module.forward(short)
gradients = module.backward(tape, output)

def seconds_of_a_call():
    begun = time.monotonic()
    module(short)
    return time.monotonic() - begun

# The shortest of some: one that waited for other processes would make the call to be interrupted too short.
took = min(seconds_of_a_call() for _ in range(10)) / len(short)
x = np.resize(short, (max(200, int(5 / took)), *short.shape[1:]))  # some five seconds

def press_soon(number=signal.SIGINT):
    def press():
        pressed.append(time.monotonic())
        signal.raise_signal(number) if threading.current_thread() is threading.main_thread() else \
            signal.pthread_kill(threading.main_thread().ident, number)
    pressed.clear()
    timer = threading.Timer(0.3, press)
    timer.start()
    return timer

pressed = []

def as_before():
    again, _, tape = module.forward(short)
    _, _, grads = module.backward(tape, again)
    return bool(
        np.array_equal(module(short)[0], output)
        and all(np.array_equal(grads[name], gradients[2][name]) for name in grads)
    )
"""

INTERRUPTED = """
def interrupted(call):
    timer = press_soon()
    try:
        call()
        answered = None  # only when it was over
    except KeyboardInterrupt:
        answered = time.monotonic() - pressed[0]
    timer.join()
    return answered

signal.signal(signal.SIGINT, signal.default_int_handler)
long_output, _, long_tape = module.forward(x[:2000])  # backward of it takes seconds too
x = x[: max(len(x), 4000)]
seconds = [
    interrupted(lambda: module(x)),
    interrupted(lambda: module.forward(x, recompute=True)),
    interrupted(lambda: [module.backward(long_tape, long_output) for _ in range(20)]),
]
print(json.dumps([seconds, as_before()]))
"""


@posix
@pytest.mark.parametrize(("threads", "batch"), [(1, 1), (2, 1), (2, 8)])
def test_ctrl_c_ends_a_call(threads, batch):
    """It takes about a tenth of a second; a busy machine may take longer, but never the five of the call."""
    seconds, unharmed = run_python(PREPARE + INTERRUPTED, threads, batch, timeout=120)
    assert all(answered is not None and answered < 2.5 for answered in seconds)
    assert unharmed


HANDLED = """
answered = []
signal.signal(signal.SIGUSR1, lambda *_: answered.append(time.monotonic()))
x = x[: len(x) // 4]
expected = np.concatenate([module(x[:100])[0]])
timer = press_soon(signal.SIGUSR1)
result = module(x)[0]
ended = time.monotonic()
timer.join()
print(json.dumps([answered[0] < ended, bool(np.array_equal(result[:100], expected)), as_before()]))
"""


@posix
@pytest.mark.parametrize("threads", [1, 2])
def test_a_handler_that_returns_lets_the_call_go_on(threads):
    assert run_python(PREPARE + HANDLED, threads, 2, timeout=120) == [True, True, True]


CALLING = """
results = []
signal.signal(signal.SIGUSR1, lambda *_: results.append(module(short)[0]))
x = x[: len(x) // 5]
expected = module(x)[0]
timer = press_soon(signal.SIGUSR1)
result = module(x)[0]
timer.join()
same = [np.array_equal(results[0], output), np.array_equal(result, expected)]
print(json.dumps([len(results), *map(bool, same)]))
"""


@posix
@pytest.mark.parametrize("threads", [1, 2])
def test_a_handler_may_call_the_module_that_it_interrupts(threads):
    assert run_python(PREPARE + CALLING, threads, 2, timeout=120) == [1, True, True]


ELSEWHERE = """
results = []
x = x[: len(x) // 5]
worker = threading.Thread(target=lambda: results.append(module(x)[0]))
signal.signal(signal.SIGINT, signal.default_int_handler)
worker.start()
timer = press_soon()
try:
    time.sleep(30)
    waited = True
except KeyboardInterrupt:
    waited = False
worker.join()
print(json.dumps([waited, bool(np.array_equal(results[0], module(x)[0])), as_before()]))
"""


@posix
def test_calls_of_other_threads_go_on():
    """Python answers signals in its main thread, whatever others are in the middle of."""
    assert run_python(PREPARE + ELSEWHERE, 2, 2, timeout=120) == [False, True, True]


TRAINING_LOOP = """
from gatedrnn import train

def loss_and_gradients(batch):
    y, _, tape = module.forward(batch)
    loss, d_y = train.mse(y, np.zeros_like(y))
    return loss, module.backward(tape, d_y)[2]

signal.signal(signal.SIGINT, signal.default_int_handler)
optimizer = train.SGD(module.parameters(), lr=0.0)
timer = press_soon()
try:
    train.fit(module, optimizer, loss_and_gradients, lambda rng: [x[:1500]] * 1000, epochs=1, progress=False)
    answered = None
except KeyboardInterrupt:
    answered = time.monotonic() - pressed[0]
timer.join()
print(json.dumps([answered, as_before()]))
"""


@posix
def test_ctrl_c_ends_fit():
    answered, unharmed = run_python(PREPARE + TRAINING_LOOP, os.cpu_count(), 1, timeout=120)
    assert answered is not None
    assert answered < 2.5
    assert unharmed
