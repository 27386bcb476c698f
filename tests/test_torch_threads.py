"""gatedrnn.torch computes on PyTorch's threads, which would otherwise spin where the engine's own compute."""

from __future__ import annotations

import sys

import pytest

from helpers import run_python

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch")

from gatedrnn.torch import _threads  # noqa: E402

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere threads are not borrowed")

SET_UP = """
import hashlib, json, os, threading, torch
import gatedrnn as gr, gatedrnn.torch as gt

def threads():
    return len(os.listdir("/proc/self/task"))

def digest(count):
    # Forward and backward of a module that this many threads share.
    torch.manual_seed(0)
    gr.set_num_threads(count)
    module, x = gt.LSTM(64, 256), torch.randn(30, 32, 64)
    output, state = module(x)
    (output.sum() + state[1].sum()).backward()
    network = module._cache.get(module._stack, module._weights(), False).network
    assert network.plan(30, 32, count)["threads"] == count
    results = [output, *state, *[p.grad for p in module.parameters()]]
    return hashlib.sha256(b"".join([r.detach().numpy().tobytes() for r in results])).hexdigest()

torch.set_num_threads(2)
(torch.randn(700, 700) @ torch.randn(700, 700)).relu().sum()  # PyTorch's threads are there
"""


@linux
def test_no_threads_of_its_own_are_started():
    """They would share the processors with PyTorch's; importing the NumPy API alone starts its own."""
    if "omp_get_max_threads" not in torch.__config__.parallel_info():
        assert not _threads.borrow()
        pytest.skip("this build of PyTorch has no OpenMP")
    assert _threads.borrow()
    code = SET_UP + "before = threads(); digest(2); print(json.dumps([before, threads()]))"
    before, after = run_python(code)
    assert after == before
    numpy_alone = """
import json, os, numpy as np, gatedrnn as gr
gr.set_num_threads(2)
before = len(os.listdir("/proc/self/task"))
gr.LSTM(64, 256)(np.zeros((30, 32, 64), np.float32))
print(json.dumps([before, len(os.listdir("/proc/self/task"))]))
"""
    before, after = run_python(numpy_alone)
    assert after == before + 1


def test_the_same_bits_on_any_number():
    """More threads than PyTorch uses, fewer, and as many."""
    digests = run_python(SET_UP + "print(json.dumps([digest(n) for n in (1, 2, 3, 1, 3, 2)]))")
    assert len(digests) == 6
    assert len(set(digests)) == 1


def test_beside_other_python_threads():
    """Several at once: whoever does not get the threads computes alone."""
    code = (
        SET_UP
        + """
expected, results = digest(2), []
def work():
    module, x = gt.GRU(64, 256), torch.randn(30, 32, 64)
    first = module(x)[0]
    results.extend([torch.equal(module(x)[0], first) for _ in range(20)])
workers = [threading.Thread(target=work) for _ in range(4)]
for worker in workers: worker.start()
for worker in workers: worker.join()
print(json.dumps([results, digest(2) == expected]))
"""
    )
    assert run_python(code) == [[True] * 80, True]


@linux
def test_forked_children_have_threads_of_their_own():
    """PyTorch's do not exist there, and its runtime would wait for them for ever."""
    code = (
        SET_UP
        + """
import numpy as np
module, x = gr.LSTM(64, 256), np.random.default_rng(0).standard_normal((30, 32, 64), np.float32)
gr.set_num_threads(2)
expected = module(x)[0].tobytes()
child = os.fork()
if child == 0:
    for _ in range(300):  # on a busy machine a call may do without the second thread
        right = module(x)[0].tobytes() == expected
        if not right or threads() == 2:
            break
    os._exit(0 if right and threads() == 2 else 1)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps([code, module(x)[0].tobytes() == expected]))
"""
    )
    assert run_python(code, timeout=60) == [0, True]


@linux
def test_gradients_of_groups_of_rows_and_mergers():
    """Threads that never meet but through the blocks that they leave, and blocks that differ in size."""
    code = (
        SET_UP
        + """
import numpy as np
torch.set_num_threads(6)
gr.set_num_threads(6)
module, x = gr.GRU(64, 64, 2, seed=0), np.random.default_rng(0).standard_normal((100, 4, 64), np.float32)
lengths = [100, 71, 79, 91]
output, _, tape = module.forward(x, lengths=lengths)
plan = module._packed().plan(100, 4, 6, backward=True)
def gradients():
    return [g.tobytes() for g in module.backward(tape, np.ones_like(output))[2].values()]
with gr.num_threads(1):
    expected = gradients()
equal = [gradients() == expected for _ in range(100)]
print(json.dumps([plan["row_groups"] > 1, plan["gradient_threads"] > 0, all(equal)]))
"""
    )
    assert run_python(code) == [True, True, True]


@linux
def test_borrowed_in_a_forked_child():
    """Where the parent has the threads that PyTorch's runtime believes in, the child computes on its own."""
    code = """
import json, os, torch
torch.set_num_threads(2)
torch.sigmoid(torch.randn(4_000_000)).sum()  # PyTorch's threads are there
codes = []
for torch_threads in (1, 2):
    child = os.fork()
    if child == 0:
        torch.set_num_threads(torch_threads)
        import numpy as np, gatedrnn as gr, gatedrnn.torch as gt
        gr.set_num_threads(2)
        module, x = gt.GRU(128, 256), np.ones((100, 64, 128), np.float32)
        with torch.no_grad():
            output = module(torch.from_numpy(x))[0].numpy()
        twin = gr.GRU(128, 256)
        twin.load_state_dict(module.state_dict())
        os._exit(0 if np.array_equal(twin(x)[0], output) else 1)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
"""
    assert run_python(code, timeout=60) == [0, 0]


@linux
def test_more_threads_than_the_system_gives():
    """GNU's runtime would end the process; so it is not asked for more than it has for others."""
    code = (
        SET_UP
        + """
import resource
import numpy as np
module, x = gr.GRU(64, 64, seed=0), np.ones((50, 1000, 64), np.float32)
gr.set_num_threads(1)
expected = module(x)[0]
gr.set_num_threads(500)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
before = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (size + 600 * 2**20, before[1]))
output = module(x)[0]
resource.setrlimit(resource.RLIMIT_AS, before)
print(json.dumps(bool(np.array_equal(output, expected))))
"""
    )
    assert run_python(code) is True
