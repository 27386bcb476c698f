"""Other Python threads go on while much memory is worked through: packing, comparing and copying."""

from __future__ import annotations

import threading
import time

import pytest

from helpers import build, normal, run_python

LARGE = """
import json, sys, threading, time
import numpy as np
import gatedrnn as gr
from gatedrnn import _core
from helpers import build

gr.set_num_threads(1)
count, ended = 0, False

def others():
    global count
    while not ended:
        count += 1
        time.sleep(0)  # hands the interpreter on, which nobody takes away here

module = build("lstm", 1024, 1024, num_layers=2)
flat, views = module._store.flat, module._store.views
options = module._network_options()
network = _core.Network("lstm", views, **options)
work = {
    "fingerprint": lambda: _core.fingerprint([flat]),
    "packing": lambda: _core.Network("lstm", views, **options),
    "packing again": lambda: network.renewed(views),
    "packing for backward": lambda: _core.Network("lstm", views, **options).pack_for_backward(),
}[sys.argv[1]]

# Threads take turns only where the one that has the interpreter lets it go.
sys.setswitchinterval(1000)
thread = threading.Thread(target=others)
thread.start()
went_on = False
for _ in range(50):
    before = count
    work()
    if went_on := count > before:
        break
ended = True
time.sleep(0.01)
thread.join()
print(json.dumps(went_on))
"""


@pytest.mark.parametrize("work", ["fingerprint", "packing", "packing again", "packing for backward"])
def test_others_go_on(work):
    assert run_python(LARGE, work)


def test_parameters_that_change_while_others_call():
    """Each call is with those before or those after, also where comparing and packing lets others run."""
    module = build("gru", 256, 512)
    x = normal((2, 1, 256))
    states = [build("gru", 256, 512, seed=seed).state_dict() for seed in (0, 1)]
    expected = []
    for state in states:
        module.load_state_dict(state)
        expected.append(module(x)[0].tobytes())
    module.parameters()  # from now on every call compares
    seen, ended = set(), threading.Event()

    def call():
        while not ended.is_set():
            seen.add(module(x)[0].tobytes())

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(60):
        module.load_state_dict(states[turn % 2])
        time.sleep(0)
    ended.set()
    for thread in threads:
        thread.join()
    assert seen <= set(expected)
