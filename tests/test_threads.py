"""Many Python threads, forked and spawned processes, and the number of threads a call may use."""

from __future__ import annotations

import asyncio
import os
import sys
import threading

import numpy as np
import pytest

import gatedrnn as gr
from gatedrnn import _core
from helpers import CELLS, assert_same_bits, build, normal, run_python, state_of

linux = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="only Linux tells and sets a process's CPUs"
)


def together(works, timeout=120):
    """Run all functions at once, each in its own thread; give their results, or raise the first exception."""
    results, errors = [None] * len(works), []
    barrier = threading.Barrier(len(works))

    def run(k):
        try:
            barrier.wait()
            results[k] = works[k]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(k,), daemon=True) for k in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]
    return results


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("threads", [2, 3])
def test_weights_packed_by_several_threads(cell, threads):
    """Large enough that the panels are shared out, also where the last one is not full."""
    x, d_output = normal((3, 2, 301)), normal((3, 2, 257), seed=1)

    def results(count):
        with gr.num_threads(count):
            module = build(cell, 301, 257)
            _, _, tape = module.forward(x)
        with gr.num_threads(1):
            return module(x), module.backward(tape, d_output)

    (output, gradients), (expected_output, expected_gradients) = results(threads), results(1)
    assert_same_bits(output, expected_output)
    assert_same_bits(gradients[:2], expected_gradients[:2])
    for name, gradient in expected_gradients[2].items():
        np.testing.assert_array_equal(gradients[2][name], gradient)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("threads", [1, 2])
def test_eight_python_threads_share_a_module(cell, threads):
    """Different shapes at once, over and over, some ragged: everyone gets what it gets alone."""
    gr.set_num_threads(threads)
    module = build(cell, 17, 65, num_layers=2, bidirectional=True)
    shapes = [(1, 1), (5, 2), (3, 7), (20, 3), (2, 40), (0, 3), (9, 16), (4, 64)]
    inputs = [(normal((t, b, 17), seed=b), state_of(module, b), np.arange(b) % (t + 1)) for t, b in shapes]
    expected = [module(x, state, lengths=lengths) for x, state, lengths in inputs]

    def repeat(x, state, lengths):
        return lambda: [module(x, state, lengths=lengths) for _ in range(10)]

    for results, e in zip(together([repeat(*i) for i in inputs]), expected, strict=True):
        for result in results:
            assert_same_bits(result, e)


@pytest.mark.parametrize("cell", CELLS)
def test_eight_python_threads_with_a_stream_each(cell):
    module = build(cell, 17, 33, num_layers=2)
    inputs = [normal((25, 1, 17), seed=k) for k in range(8)]
    expected = [module(x) for x in inputs]

    def run(x):
        stream = module.stream()
        return np.stack([stream.step(x_t) for x_t in x]), stream.state

    for result, e in zip(together([lambda x=x: run(x) for x in inputs]), expected, strict=True):
        assert_same_bits(result, e)


def test_threads_that_share_a_stream_are_told():
    """A step in another thread's step is refused by name; the stream goes on, having made the others only."""
    module = build("lstm", 65, 257)
    x = np.broadcast_to(normal(65), (64, 65)).copy()
    stream = module.stream(64)

    def run():
        refused = 0
        for _ in range(20):
            try:
                stream.step(x)
            except RuntimeError as error:
                refused += "stream: in use" in str(error)
        return refused

    made = 4 * 20 - sum(together([run] * 4))
    assert made >= 1
    assert_same_bits(stream.step(x), module(np.broadcast_to(x, (made + 1, 64, 65)))[0][-1])


def test_module_changes_while_others_call_it():
    """Each result is that of the old weights or that of the new ones, never a mixture."""
    module, other = build("lstm", 17, 65, seed=1), build("lstm", 17, 65, seed=2)
    x = normal((6, 9, 17))
    values = [module.state_dict(), other.state_dict()]
    allowed = {module(x)[0].tobytes(), other(x)[0].tobytes()}

    def write():
        for k in range(30):
            module.load_state_dict(values[k % 2])

    def read():
        return {module(x)[0].tobytes() for _ in range(30)}

    for seen in together([write, read, read, read])[1:]:
        assert seen <= allowed


# A large call, so that the parent's worker threads exist, then children; each sends back its bits.
CHILDREN = """
import hashlib, json, multiprocessing, sys
import gatedrnn as gr
from helpers import build, flat, normal

def digest(threads):
    gr.set_num_threads(threads)
    module = build("lstm", 65, 257)
    results = [module(normal((4, b, 65))) for b in (1, 64)]
    stream = module.stream()
    stream.step(normal(65))
    return hashlib.sha256(b"".join(a.tobytes() for r in results for a in flat(r))).hexdigest()

if __name__ == "__main__":
    method, threads = sys.argv[1], int(sys.argv[2])
    before = digest(threads)
    with multiprocessing.get_context(method).Pool(2) as pool:
        children = pool.map(digest, [1, threads])
    print(json.dumps([before, *children, digest(threads)]))
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("threads", [1, 3])
def test_child_processes(method, threads, tmp_path):
    """A parent that has used its worker threads, then children: they do not hang, and have the same bits."""
    if method == "fork" and sys.platform == "win32":
        pytest.skip("there is no fork on this system")
    script = tmp_path / "children.py"  # a file, as the children of "spawn" import the main script by its path
    script.write_text(CHILDREN, encoding="utf-8")
    digests = run_python(script, method, threads, timeout=100)
    assert len(digests) == 4
    assert len(set(digests)) == 1


@linux
def test_fork_in_a_python_thread():
    """A fork out of a thread other than the main one, while another is inside a call."""
    code = """
import json, os, threading
import gatedrnn as gr
from helpers import build, normal
gr.set_num_threads(2)
module = build("gru", 65, 257)
x = normal((20, 64, 65))
expected = module(x)[0].tobytes()
stop = threading.Event()
def busy():
    while not stop.is_set():
        module(x)
codes = []
def fork():
    for _ in range(5):
        child = os.fork()
        if child == 0:
            os._exit(0 if module(x)[0].tobytes() == expected else 1)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
threads = [threading.Thread(target=busy), threading.Thread(target=fork)]
for t in threads: t.start()
threads[1].join(); stop.set(); threads[0].join()
print(json.dumps(codes))
"""
    assert run_python(code, timeout=60) == [0] * 5


@linux
def test_a_child_forked_in_a_block_of_threads():
    """Its calls use threads again, and the calls of its parent's other threads do not count."""
    code = """
import json, os, threading
import gatedrnn as gr
from helpers import build, normal
gr.set_num_threads(2)
module, x = build("lstm", 65, 257), normal((20, 64, 65))
expected = module(x)[0].tobytes()
busy = [threading.Thread(target=module, args=(normal((4000, 64, 65)),)) for _ in range(3)]
for thread in busy: thread.start()
child = os.fork()
if child == 0:
    right = all(module(x)[0].tobytes() == expected for _ in range(5))
    os._exit(0 if right and len(os.listdir("/proc/self/task")) == 2 else 1)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
for thread in busy: thread.join()
print(json.dumps(status))
"""
    assert run_python(code, timeout=120) == 0


@linux
def test_fork_while_parameters_are_loaded():
    """The child has the old ones or the new ones."""
    code = """
import json, os, threading
import gatedrnn as gr
from helpers import normal
module = gr.LSTM(40, 130, 2, seed=0)
states = [module.state_dict(), gr.LSTM(40, 130, 2, seed=9).state_dict()]
x = normal((3, 2, 40))
outputs = []
for state in states:
    module.load_state_dict(state)
    outputs.append(module(x)[0].tobytes())
stop = threading.Event()
def load():
    while not stop.is_set():
        for state in states:
            module.load_state_dict(state)
loader = threading.Thread(target=load)
loader.start()
codes = []
for _ in range(60):
    child = os.fork()
    if child == 0:
        os._exit(0 if module(x)[0].tobytes() in outputs else 1)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
stop.set()
loader.join()
print(json.dumps(sorted(set(codes))))
"""
    assert run_python(code, timeout=60) == [0]


def test_daemon_threads_inside_a_call_at_the_end():
    code = """
import threading, time
import gatedrnn as gr
from helpers import normal
module, x = gr.GRU(64, 128), normal((50, 8, 64))
stream, x_t = gr.GRU(512, 512).stream(4), normal((4, 512))
def call():
    while True:
        module(x)
def train():
    while True:
        output, _, tape = module.forward(x)
        module.backward(tape, output)
def step():
    while True:
        stream.step(x_t)
for target in (call, call, train, step):
    threading.Thread(target=target, daemon=True).start()
time.sleep(0.2)
"""
    for _ in range(3):
        child = run_python(code, check_status=False)
        assert (child.returncode, child.stderr) == (0, "")


@linux
def test_a_stream_does_not_hire_more_threads_than_its_steps_use():
    code = """
import json, os
import gatedrnn as gr
from helpers import normal
gr.set_num_threads(1000)
stream, x = gr.LSTM(256, 256).stream(1), normal((1, 256))
for _ in range(2000):
    stream.step(x)
print(json.dumps(len(os.listdir("/proc/self/task"))))
"""
    assert run_python(code) < 100


@linux
def test_workers_keep_off_the_callers_processor():
    """They have another of the caller's. A caller that has one, which they would share, leaves them alone."""
    available = sorted(os.sched_getaffinity(0))
    if len(available) < 2:
        pytest.skip("this process has one processor")
    if _core.thread_source() != "pool":
        pytest.skip("OpenMP places its threads itself")
    code = """
import json, os, sys, threading, time
import gatedrnn as gr
from helpers import build, normal
available = set(json.loads(sys.argv[1]))
gr.set_num_threads(2)
module, x = build("lstm", 65, 257), normal((20, 64, 65))
def tasks():
    return set(map(int, os.listdir("/proc/self/task")))
before = tasks()
def call_until(placed):
    end = time.monotonic() + 60
    while time.monotonic() < end:  # a team may be in use, or small for a while
        module(x)
        workers = tasks() - before - {threading.get_native_id()}
        if workers and all(placed(os.sched_getaffinity(worker)) for worker in workers):
            return True
    return False
results = [call_until(lambda mask: mask < available)]
(worker,) = tasks() - before
processor_of_worker = os.sched_getaffinity(worker)
def narrow():
    os.sched_setaffinity(0, available - processor_of_worker)
    end = time.monotonic() + 0.3  # workers are placed now and then
    while time.monotonic() < end:
        module(x)
    results.append(os.sched_getaffinity(worker) == processor_of_worker)
thread = threading.Thread(target=narrow)
thread.start(); thread.join()
results.append(call_until(lambda mask: mask < available))
print(json.dumps(results))
"""
    assert run_python(code, available[:2]) == [True, True, True]


def test_num_threads_is_a_context_manager():
    before = gr.get_num_threads()
    assert before >= 1
    with gr.num_threads(before + 1):
        assert gr.get_num_threads() == before + 1
        with gr.num_threads(1):
            assert gr.get_num_threads() == 1
        assert gr.get_num_threads() == before + 1
    assert gr.get_num_threads() == before
    with pytest.raises(RuntimeError, match="inside"), gr.num_threads(before + 2):
        raise RuntimeError("inside")
    assert gr.get_num_threads() == before


def test_num_threads_belongs_to_its_thread():
    """Blocks of two threads overlap, and the first to enter is the first to leave."""
    before = gr.get_num_threads()
    entered, left = threading.Barrier(2), threading.Event()

    def first():
        with gr.num_threads(before + 1):
            entered.wait(60)
            inside = gr.get_num_threads()
        left.set()
        return inside, gr.get_num_threads()

    def second():
        with gr.num_threads(before + 2):
            entered.wait(60)
            assert left.wait(60)
            inside = gr.get_num_threads()
        return inside, gr.get_num_threads()

    with gr.num_threads(before + 3):  # a new thread has a context of its own
        assert together([first, second]) == [(before + 1, before), (before + 2, before)]
        assert gr.get_num_threads() == before + 3
    assert gr.get_num_threads() == before


def test_num_threads_belongs_to_its_task():
    before = gr.get_num_threads()

    async def task(count, sleeps):
        with gr.num_threads(count):
            for _ in range(sleeps):
                assert gr.get_num_threads() == count
                await asyncio.sleep(0)
        assert gr.get_num_threads() == before

    async def tasks():
        await asyncio.gather(*[task(k + 1, 7 - k) for k in range(5)])

    asyncio.run(tasks())
    assert gr.get_num_threads() == before


def test_num_threads_limits_calls_of_its_thread():
    """A large call in a block of one thread starts no others."""
    code = """
import json, os
import gatedrnn as gr
from helpers import build, normal
gr.set_num_threads(4)
def tasks():
    return len(os.listdir("/proc/self/task"))
before = tasks()
with gr.num_threads(1):
    module = build("lstm", 256, 512)
    output, _, tape = module.forward(normal((30, 64, 256)))
    module.backward(tape, output)
    module.stream(64).step(normal((64, 256)))
    limited = tasks()
module(normal((30, 64, 256)))
print(json.dumps([limited - before, tasks() - before > 0]))
"""
    assert run_python(code) == [0, True]


def test_num_threads_decorates_plain_functions():
    async def coroutine():
        pass

    def generator():
        yield

    for function in (coroutine, generator):
        with pytest.raises(TypeError, match="num_threads: expected a plain function"):
            gr.num_threads(1)(function)


def test_num_threads_may_be_used_again():
    before = gr.get_num_threads()
    one, count = gr.num_threads(1), gr.num_threads(before + 2)(gr.get_num_threads)
    for _ in range(2):
        with one:
            assert gr.get_num_threads() == 1
            assert count() == before + 2
            with one:
                assert gr.get_num_threads() == 1
            assert gr.get_num_threads() == 1
        assert gr.get_num_threads() == before


def test_set_num_threads():
    gr.set_num_threads(3)
    assert gr.get_num_threads() == 3
    gr.set_num_threads(np.int64(1))
    assert gr.get_num_threads() == 1


@linux
@pytest.mark.parametrize("count", [1, 2])
def test_default_count_respects_affinity(count):
    available = sorted(os.sched_getaffinity(0))
    if count > len(available):
        pytest.skip(f"this process has {len(available)} CPUs")
    code = """
import json, os, sys
os.sched_setaffinity(0, json.loads(sys.argv[1]))
import gatedrnn as gr
print(json.dumps(gr.get_num_threads()))
"""
    assert 1 <= run_python(code, available[:count]) <= count
