"""Hours of rough use in one program: every result has the bits that it has alone, and memory stays flat.

    python tests/soak.py --seconds 600

Random modules are called, trained, stepped as streams, copied and pickled from several Python threads at
once, on numbers of threads that change all the while. Parameters are loaded meanwhile, bad input comes in
between, children are forked whatever the other threads are in the middle of, signals arrive in long calls,
and a busy process comes and goes beside. Everything is checked bit by bit against results that one thread
computed beforehand. Afterwards the memory that the process holds is looked at: after the first third of the
time, in which caches fill, it must not grow.

The exit status is 1 where anything was wrong. The same --seed draws the same modules, inputs and actions, but
the threads meet in another order each time. A hang is ended with the stacks of all threads.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import faulthandler
import gc
import hashlib
import itertools
import os
import pickle
import select
import signal
import sys
import threading
import time
import warnings
from collections import Counter

import numpy as np

import gatedrnn as gr
from gatedrnn.bench.busy_process import BusyProcess
from helpers import (
    CELLS_AND_PROJECTION,
    DTYPES,
    HAS_FMA,
    ISA,
    build,
    flat,
    in_pieces,
    normal,
    state_of,
)

MEGABYTE = 2**20
# By this much the memory held in the last third of the time may exceed that of the middle third: modules are
# drawn at random, and after some of them the allocator holds 50 MiB more than after others.
MEMORY_MARGIN = 64 * MEGABYTE
FEWEST_EPOCHS_FOR_MEMORY = 9
LARGEST_WORK = 3e8  # multiply-adds
CHILD_SECONDS = 60  # after which it hangs
EPOCH_SECONDS = 120.0  # likewise, on top of how long an epoch is meant to last


class Failures:
    """What was wrong, and how often; any thread may add to it."""

    def __init__(self):
        self.counts = Counter()

    def add(self, text):
        first = text not in self.counts
        self.counts[text] += 1
        if first:
            print(f"FAILED: {text}", flush=True)


def digest(arrays):
    """One text for the bits of all arrays, and their shapes and dtypes."""
    hashed = hashlib.blake2b(digest_size=12)
    for array in arrays:
        hashed.update(f"{array.dtype}{array.shape}".encode())
        hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()


def parts(state):
    return list(state) if isinstance(state, tuple) else [state]


# ---- What is computed -------------------------------------------------------------------------------------


class Work:
    """A module with inputs, and the digests of what it gives for them."""

    def __init__(self, rng):
        cell = str(rng.choice(CELLS_AND_PROJECTION))
        self.cell = cell
        self.options = {
            "num_layers": int(rng.choice([1, 1, 2, 3])),
            "bidirectional": bool(rng.random() < 0.4),
            "bias": bool(rng.random() < 0.8),
            "batch_first": bool(rng.random() < 0.3),
            "dtype": DTYPES[int(rng.random() < 0.3)],
        }
        if self.options["num_layers"] > 1 and rng.random() < 0.3:
            self.options["dropout"] = 0.25
        self.seed = int(rng.integers(1000))
        self.sizes = drawn_sizes(rng, self.options)
        inputs, hidden, steps, rows = self.sizes
        self.module = build(cell, inputs, hidden, seed=self.seed, **self.options)
        self.unbatched = rows == 1 and bool(rng.random() < 0.3)
        lead = (steps,) if self.unbatched else (rows, steps) if self.options["batch_first"] else (steps, rows)
        self.x = normal((*lead, inputs), seed=self.seed, dtype=self.module.dtype)
        if rng.random() < 0.2:  # strides
            self.x = np.repeat(self.x, 2, axis=0)[::2]
        batch = None if self.unbatched else rows
        self.state = state_of(self.module, batch) if rng.random() < 0.5 else None
        ragged = not self.unbatched and rng.random() < 0.4
        self.lengths = rng.integers(0, steps + 1, rows) if ragged else None
        self.marks = drawn_marks(rng, self.x.shape[:-1])
        self.recompute = bool(rng.random() < 0.3)
        self.d_output = normal(self.call()[0].shape, seed=3, dtype=self.module.dtype)
        self.actions = {"call": self.call, "call with out": self.call_into, "training": self.train}
        self.actions |= {"deep copy": self.deep_copy, "pickle": self.pickled}
        in_steps = self.lengths is None and not self.unbatched and self.marks.get("mask_output") != "previous"
        if in_steps and rows and not self.options["bidirectional"]:
            self.actions |= {"stream": self.stream, "copied stream": self.copied_stream}
        self.expected = {name: digest(action()) for name, action in self.actions.items()}
        self.complaints = list(self.inconsistencies())

    def __str__(self):
        options = {k: np.dtype(v).name if k == "dtype" else v for k, v in self.options.items() if v}
        inputs, hidden, steps, rows = self.sizes
        extras = [name for name in ("unbatched", "recompute") if getattr(self, name)] + list(self.marks)
        extras += [name for name in ("state", "lengths") if getattr(self, name) is not None]
        sizes = f"I={inputs} H={hidden} T={steps} B={rows}"
        return f"{self.cell} {sizes} {options} {' '.join(extras)} seed={self.seed}"

    def inconsistencies(self):
        """What ways of computing the same disagree about, with one thread."""
        same = [name for name in ("call with out", "deep copy", "pickle") if name in self.actions]
        if "stream" in self.actions:
            same += ["stream", "copied stream"]
        for name in same:
            if self.expected[name] != self.expected["call"]:
                yield f"{name} against call, one thread: {self}"
        if 0 < self.x.size * self.sizes[1] < 1e5 and not self.marks:
            pieces = in_pieces(self.module, self.x, self.state, self.lengths)
            if digest(flat(pieces)) != self.expected["call"]:
                yield f"rows and steps alone against call, one thread: {self}"

    def check(self, name, failures):
        got = digest(self.actions[name]())
        if got != self.expected[name]:
            failures.add(f"{name}: other bits: {self}")

    def call(self, module=None):
        return flat((module or self.module)(self.x, self.state, lengths=self.lengths, **self.marks))

    def call_into(self):
        out = np.empty(self.d_output.shape, self.module.dtype)
        return flat(self.module(self.x, self.state, lengths=self.lengths, out=out, **self.marks))

    def train(self):
        module = self.module
        output, state_n, tape = module.forward(
            self.x,
            self.state,
            lengths=self.lengths,
            recompute=self.recompute,
            dropout_seed=5,
            **self.marks,
        )
        d_x, d_state, gradients = module.backward(tape, self.d_output, state_n)
        module.backward(tape, self.d_output, None, accumulate_into=gradients, input_gradient=False)
        return [*flat((output, state_n)), d_x, *parts(d_state), *gradients.values()]

    def deep_copy(self):
        return self.call(copy.deepcopy(self.module))

    def pickled(self):
        return self.call(pickle.loads(pickle.dumps(self.module)))

    def steps(self):
        """Of each step what a stream gets."""
        names = [name for name in self.marks if name != "mask_output"]
        arrays = [self.x, *[self.marks[name] for name in names]]
        if self.options["batch_first"]:
            arrays = [array.swapaxes(0, 1) for array in arrays]
        return [(x_t, dict(zip(names, flags, strict=True))) for x_t, *flags in zip(*arrays, strict=True)]

    def stream(self, copied=lambda stream: stream):
        stream = self.module.stream(self.sizes[3])
        if self.state is not None:
            stream.state = self.state
        steps = self.steps()
        half = len(steps) // 2
        outputs = [stream.step(x_t, **flags) for x_t, flags in steps[:half]]
        stream = copied(stream)
        outputs += [stream.step(x_t, **flags) for x_t, flags in steps[half:]]
        output = np.stack(outputs) if outputs else np.empty(self.d_output.shape, self.module.dtype)
        if self.options["batch_first"] and outputs:
            output = output.swapaxes(0, 1)
        return flat((output, stream.state))

    def copied_stream(self):
        return self.stream(copied_stream if STREAMS_COPY else state_of_stream_moved(self.module))


def drawn_marks(rng, shape):
    """Steps that are skipped, and episodes that begin."""
    marks = {}
    if rng.random() < 0.3:
        marks["mask"] = rng.random(shape) < rng.random()
        marks["mask_output"] = str(rng.choice(["zeros", "previous"]))
    if rng.random() < 0.3:
        marks["resets"] = rng.random(shape) < rng.random()
    return marks


def drawn_sizes(rng, options):
    """Input, hidden units, steps and rows, small ones more often, together no more work than LARGEST_WORK."""
    while True:
        inputs, hidden = (int(np.exp(rng.uniform(0, np.log(300)))) for _ in range(2))
        steps, rows = (int(np.exp(rng.uniform(0, np.log(limit)))) for limit in (80, 80))
        if rng.random() < 0.03:
            steps = 0
        if rng.random() < 0.03:
            rows = 0
        directions = 1 + options["bidirectional"]
        width = max(inputs, directions * hidden if options["num_layers"] > 1 else 0) + hidden
        if (
            4 * hidden * width * options["num_layers"] * directions * steps * rows <= LARGEST_WORK
            and hidden > 1
        ):
            return inputs, hidden, steps, rows


def copied_stream(stream):
    return pickle.loads(pickle.dumps(copy.deepcopy(copy.copy(stream))))


def streams_copy():
    """Whether this version's streams can be copied and pickled."""
    try:
        copied_stream(gr.GRU(2, 3, seed=0).stream())
    except TypeError:
        return False
    return True


def state_of_stream_moved(module):
    def moved(stream):
        other = module.stream(stream.batch_size)
        other.state = stream.state
        return other

    return moved


STREAMS_COPY = streams_copy()


class SteppedStream:
    """A stream that a thread of its own steps without pause, for others to fork in the middle of a step."""

    STEPS = 12

    def __init__(self, rng):
        self.cell = str(rng.choice(CELLS_AND_PROJECTION))
        rows, hidden = int(rng.choice([1, 16, 64])), int(rng.integers(60, 300))
        self.module = build(self.cell, 65, hidden, num_layers=int(rng.choice([1, 2])))
        self.x = normal((self.STEPS, rows, 65), seed=hidden)
        self.stream = self.module.stream(rows)
        self.outputs, self.states = [], [digest(parts(self.stream.state))]
        for x_t in self.x:
            self.outputs.append(digest([self.stream.step(x_t)]))
            self.states.append(digest(parts(self.stream.state)))
        self.stream.reset()

    def __str__(self):
        return f"stream of {self.module!r}, {self.stream.batch_size} rows"

    def run(self, stop, failures):
        while not stop.is_set():
            for x_t, expected in zip(self.x, self.outputs, strict=True):
                if digest([self.stream.step(x_t)]) != expected:
                    failures.add(f"stepped by its thread: other bits: {self}")
            self.stream.reset()

    def check_in_child(self):
        """It goes on from the state at the fork, which is that after a whole number of steps."""
        where = digest(parts(self.stream.state))
        if where not in self.states:
            raise AssertionError(f"a state of no step: {self}")
        at = self.states.index(where) % self.STEPS
        if at == 0:
            self.stream.reset()
        for x_t, expected in zip(self.x[at:], self.outputs[at:], strict=True):
            if digest([self.stream.step(x_t)]) != expected:
                raise AssertionError(f"other bits from step {at} on: {self}")


class Reloaded:
    """A module that gets other parameters while it is called: each call has the one's or the other's bits."""

    def __init__(self, rng):
        hidden = int(rng.integers(30, 200))
        self.module = build("lstm", 33, hidden, num_layers=2)
        self.x = normal((6, 5, 33), seed=hidden)
        self.d_output = normal((6, 5, hidden), seed=hidden)
        self.states = [build("lstm", 33, hidden, num_layers=2, seed=seed).state_dict() for seed in (1, 2)]
        self.called, self.trained = set(), set()
        for state in self.states:
            self.module.load_state_dict(state)
            self.called.add(self.call())
            self.trained.add(self.train())

    def call(self):
        return digest(flat(self.module(self.x)))

    def train(self):
        output, state_n, tape = self.module.forward(self.x)
        d_x, d_state, gradients = self.module.backward(tape, self.d_output)
        return digest([*flat((output, state_n)), d_x, *parts(d_state), *gradients.values()])

    def load(self, which):
        self.module.load_state_dict(self.states[which])

    def check(self, failures):
        if self.call() not in self.called:
            failures.add(f"call while parameters are loaded: bits of neither: {self.module!r}")
        if self.train() not in self.trained:
            failures.add(f"training while parameters are loaded: bits of neither: {self.module!r}")


# ---- What else happens ------------------------------------------------------------------------------------


def bad_inputs(work):
    """(what, exception, call): each has to be refused, and to leave everything as it was."""
    module, x = work.module, work.x
    tape = module.forward(np.zeros((1, 1, work.sizes[0]), module.dtype))[2]
    other = build("gru", 3, 4)
    return [
        ("integers", TypeError, lambda: module(np.zeros(x.shape, int))),
        ("too wide", ValueError, lambda: module(np.concatenate([x, x], axis=-1))),
        ("four axes", ValueError, lambda: module(x[None, None])),
        ("a wrong state", ValueError, lambda: module(x, np.zeros((1, 2, 3, 4), module.dtype))),
        ("lengths beyond the end", ValueError, lambda: module(x, lengths=[10**6] * work.sizes[3])),
        ("a short out", ValueError, lambda: module(x, out=np.zeros(1, module.dtype))),
        ("another module's tape", ValueError, lambda: other.backward(tape, None)),
        ("no tape", TypeError, lambda: module.backward(None, None)),
        ("no parameters", ValueError, lambda: module.load_state_dict({})),
        ("no rows", ValueError, lambda: module.stream(0)),
        ("no threads", ValueError, lambda: gr.set_num_threads(0)),
    ]


def check_bad_input(rng, work, failures):
    cases = bad_inputs(work)
    what, exception, call = cases[int(rng.integers(len(cases)))]
    if what == "lengths beyond the end" and not work.sizes[3]:
        return
    if what == "a wrong state" and isinstance(work.module, gr.LSTM):
        exception = (TypeError, ValueError)
    try:
        call()
    except exception:
        return
    except Exception as error:
        failures.add(f"{what}: expected {exception}, got {error!r}: {work}")
    else:
        failures.add(f"{what}: accepted: {work}")


def in_child(what, check, failures):
    """Run `check` in a forked child; what it raises there is a failure here."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(
                CHILD_SECONDS // 2
            )  # prints the stacks; the parent's watchdog is a thread, which is not here
            check()
            os._exit(0)
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode()[:4000])
        finally:
            os._exit(1)
    os.close(writer)
    ready, _, _ = select.select([reader], [], [], CHILD_SECONDS)  # also at its end
    message = os.read(reader, 4096).decode(errors="replace") if ready else "hangs"
    os.close(reader)
    if not ready:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        failures.add(f"forked child, {what}: {message or f'status {status}'}")


class Interrupted:
    """A call of some tenths of a second into which SIGINT comes, and which computes as before afterwards."""

    def __init__(self):
        self.module = build("lstm", 8, 256)
        self.out = np.empty((600, 16, 256), np.float32)
        self.x = normal((600, 16, 8))
        self.expected = self.call()
        self.came = 0
        signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # programs started in the background ignore it

    def call(self):
        return digest(flat(self.module(self.x, out=self.out)))

    def check(self, rng, failures):
        """Main thread only: signals come to it."""
        delay = float(rng.uniform(0, 0.05))
        sender = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        interrupted = False
        try:
            sender.start()
            for _ in range(1000):
                self.module(self.x, out=self.out)
        except KeyboardInterrupt:
            interrupted = True
        sender.join()
        self.came += interrupted
        if not interrupted:
            failures.add("SIGINT in a loop of long calls: no KeyboardInterrupt")
        if self.call() != self.expected:
            failures.add("after SIGINT in a call: other bits")


# ---- The run ----------------------------------------------------------------------------------------------


class Soak:
    """One run of the program."""

    def __init__(self, seconds, seed, workers):
        self.seed, self.workers = seed, workers
        self.end = time.monotonic() + seconds
        self.epoch_seconds = min(10.0, max(1.0, seconds / 20))
        self.failures = Failures()
        self.counts = Counter()
        self.memory = []
        self.most_threads = 2 + len(os.sched_getaffinity(0))

    def run(self):
        interrupted, neighbour = Interrupted(), BusyProcess()
        before = gr.get_num_threads()
        try:
            for epoch in itertools.count():
                if time.monotonic() >= self.end:
                    break
                faulthandler.dump_traceback_later(self.epoch_seconds + EPOCH_SECONDS, exit=True)
                self.epoch(epoch, interrupted, neighbour)
                self.memory.append(held_memory())
        finally:
            faulthandler.cancel_dump_traceback_later()
            neighbour.__exit__()
            gr.set_num_threads(before)
        self.counts["interrupted calls"] = interrupted.came
        return self.report()

    def epoch(self, epoch, interrupted, neighbour):
        rng = np.random.default_rng([self.seed, epoch])
        gr.set_num_threads(1)
        works = [Work(rng) for _ in range(8)]
        streams, reloaded = [SteppedStream(rng) for _ in range(2)], Reloaded(rng)
        for work in works:
            for complaint in work.complaints:
                self.failures.add(complaint)
        stop = threading.Event()
        targets = [lambda s=s: s.run(stop, self.failures) for s in streams]
        for worker in range(self.workers):
            generator = np.random.default_rng([self.seed, epoch, worker])
            targets.append(
                lambda g=generator, w=worker: self.work(g, stop, works, streams, reloaded, forks=w == 0)
            )
        threads = [threading.Thread(target=self.guarded, args=(target,), daemon=True) for target in targets]
        for thread in threads:
            thread.start()
        end = min(self.end, time.monotonic() + self.epoch_seconds)
        while time.monotonic() < end:
            self.disturb(rng, interrupted, neighbour, reloaded)
            time.sleep(float(rng.uniform(0, 0.05)))
        stop.set()
        for thread in threads:
            thread.join()

    def guarded(self, target):
        try:
            target()
        except BaseException as error:
            self.failures.add(f"a thread ended: {type(error).__name__}: {error}")

    def disturb(self, rng, interrupted, neighbour, reloaded):
        """What the main thread does meanwhile."""
        what = rng.choice(["threads", "neighbour", "interrupt", "load"], p=[0.3, 0.1, 0.2, 0.4])
        self.counts[str(what)] += 1
        if what == "threads":
            gr.set_num_threads(int(rng.integers(1, self.most_threads + 1)))
        elif what == "neighbour":
            neighbour.__exit__() if neighbour.running else neighbour.__enter__()
        elif what == "interrupt":
            interrupted.check(rng, self.failures)
        else:
            reloaded.load(int(rng.integers(2)))

    def work(self, rng, stop, works, streams, reloaded, forks):
        """What each other thread does."""
        own = SteppedStream(rng)
        while not stop.is_set():
            work = works[int(rng.integers(len(works)))]
            name = str(rng.choice(list(work.actions)))
            kind = rng.random()
            if kind < 0.7:
                with self.some_threads(rng) if kind < 0.2 else contextlib.nullcontext():
                    work.check(name, self.failures)
                self.counts[name] += 1
            elif kind < 0.8:
                reloaded.check(self.failures)
                self.counts["call while loading"] += 1
            elif kind < 0.95 or not forks:
                check_bad_input(rng, work, self.failures)
                self.counts["bad input"] += 1
            else:
                self.fork(rng, work, name, [own, *streams])

    def some_threads(self, rng):
        return gr.num_threads(int(rng.integers(1, self.most_threads + 1)))

    def fork(self, rng, work, name, streams):
        block = self.some_threads(rng)

        def compute():
            with block:
                got = digest(work.actions[name]())
            if got != work.expected[name]:
                raise AssertionError(f"other bits: {work}")

        stream = streams[int(rng.integers(len(streams)))]
        in_child(name, compute, self.failures)
        in_child("a stream of the parent", stream.check_in_child, self.failures)
        self.counts["fork"] += 2

    def report(self):
        print(", ".join(f"{count} x {name}" for name, count in sorted(self.counts.items())))
        if not STREAMS_COPY:
            print("note: streams of this version cannot be copied; their states were moved instead")
        self.check_memory()
        for text, count in self.failures.counts.items():
            print(f"failed {count} times: {text}")
        print(f"seed {self.seed}: {sum(self.failures.counts.values())} failures")
        return int(bool(self.failures.counts))

    def check_memory(self):
        if len(self.memory) < FEWEST_EPOCHS_FOR_MEMORY:
            print(f"note: {len(self.memory)} epochs are too few to tell whether memory grows")
            return
        third = len(self.memory) // 3
        middle, last = max(self.memory[third : 2 * third]), max(self.memory[2 * third :])
        thirds = f"{middle / MEGABYTE:.0f} MiB at most in the middle third, {last / MEGABYTE:.0f} in the last"
        text = f"memory held: {thirds}"
        print(text)
        if last > middle + MEMORY_MARGIN:
            self.failures.add(f"{text}, more than {MEMORY_MARGIN / MEGABYTE:.0f} MiB above")


def c_library(name, *arguments):
    """Call a function of the C library that not all of them have."""
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)


def held_memory():
    """Bytes of physical memory that this process holds, but for freed ones that the C library keeps."""
    gc.collect()
    c_library("malloc_trim", 0)
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--seed", type=int, help="what is drawn (default: from the clock)")
    parser.add_argument("--workers", type=int, default=4, help="Python threads beside others (default: 4)")
    options = parser.parse_args()
    if not HAS_FMA:
        parser.error(f"the {ISA} kernels do not promise the same bits for every number of threads")
    seed = options.seed if options.seed is not None else time.time_ns() % 10**6
    print(f"seed {seed}, {gr.get_num_threads()} threads, {options.seconds:g} s", flush=True)
    m_arena_max = -8  # as malloc.h has it: a heap per thread would be fragmented, each in its own way
    c_library("mallopt", m_arena_max, 1)
    faulthandler.enable()
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # at a fork
    faulthandler.register(signal.SIGALRM, chain=True)
    return Soak(options.seconds, seed, options.workers).run()


if __name__ == "__main__":
    sys.exit(main())
