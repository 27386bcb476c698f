"""forward and backward in rough hands: bad arguments, many threads, forked processes, memory."""

from __future__ import annotations

import copy
import os
import pickle
import sys
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

import gatedrnn as gr
from gradients import CELLS, assert_same_gradients, digest, make, named, parts, problem
from helpers import assert_same_bits, build, normal, run_python, state_of
from test_errors import INTERNAL, LENGTHS, WRONG_ARRAYS, X_ONLY, read_only, refused, unharmed
from test_threads import together

cells = pytest.mark.parametrize("cell", CELLS)
T, B, WIDTH, H = 4, 3, 5, 7
X, D = normal((T, B, WIDTH)), normal((T, B, H), seed=1)
WRONG = {k: v for k, v in WRONG_ARRAYS.items() if k != "none"}


@pytest.fixture
def gru():
    return build("gru", num_layers=2)


@pytest.fixture
def lstm():
    return build("lstm", proj_size=3)


def new_arrays(module, value=3.0):
    return {k: np.full_like(v, value) for k, v in module.state_dict().items()}


# --- arguments of forward -------------------------------------------------------------------------


@pytest.mark.parametrize("bad", WRONG_ARRAYS | X_ONLY)
@pytest.mark.parametrize("batch_first", [True, False])
def test_x(bad, batch_first):
    module = build("gru", batch_first=batch_first)
    value, kind = (WRONG_ARRAYS | X_ONLY)[bad]
    with unharmed(module), refused("x", kind):
        module.forward(value)


@pytest.mark.parametrize("shape", [(2**50, 3, 5), (3, 2**50, 5), (2**30, 2**28, 5)])
def test_x_too_large_for_any_memory(gru, shape):
    with unharmed(gru), pytest.raises((ValueError, MemoryError)) as caught:
        gru.forward(np.broadcast_to(np.float32(0), shape))
    assert not INTERNAL.search(str(caught.value))


@pytest.mark.parametrize("bad", WRONG)
def test_state(gru, lstm, bad):
    value, kind = WRONG[bad]
    h, c = np.zeros((1, B, 3), np.float32), np.zeros((1, B, H), np.float32)
    with unharmed(gru), refused("state", kind):
        gru.forward(X, value)
    for pair in ((value, c), (h, value)):
        with unharmed(lstm), refused("state", kind):
            lstm.forward(X, pair)


@pytest.mark.parametrize("bad", LENGTHS)
def test_lengths(gru, bad):
    value, kind = LENGTHS[bad]
    with unharmed(gru), refused("lengths", *(kind if isinstance(kind, tuple) else (kind,))):
        gru.forward(X, lengths=value)


@pytest.mark.parametrize("bad", [None, 0, 1, "yes", 1.0, np.array(True), [True]], ids=repr)
@pytest.mark.parametrize("name", ["recompute", "input_gradient"])
def test_flags(gru, name, bad):
    """Integers that equal True or False are a misplaced argument more often than not."""
    _, _, tape = gru.forward(X)
    with unharmed(gru), refused(name, TypeError):
        if name == "recompute":
            gru.forward(X, recompute=bad)
        else:
            gru.backward(tape, D, input_gradient=bad)
    gru.backward(gru.forward(X, recompute=np.True_)[2], D, input_gradient=np.False_)


@pytest.mark.parametrize(
    ("bad", "kind"),
    [(-1, ValueError), (1.0, TypeError), ("1", TypeError), (True, TypeError), ([1], TypeError)],
    ids=repr,
)
def test_dropout_seed(bad, kind):
    """Refused also where there is nothing to drop."""
    for module in (build("gru"), build("gru", num_layers=2, dropout=0.5)):
        with unharmed(module), refused("dropout_seed", kind):
            module.forward(X, dropout_seed=bad)
        module.forward(X, dropout_seed=np.int64(3))
        module.forward(X, dropout_seed=2**70)


def test_no_such_argument(gru):
    """Only the arrays go by place; the others have to be named, and must exist."""
    _, _, tape = gru.forward(X)
    for call in (
        lambda: gru.forward(),
        lambda: gru.forward(X, None, [1, 2, 3]),
        lambda: gru.forward(X, out=D),
        lambda: gru.backward(),
        lambda: gru.backward(tape),
        lambda: gru.backward(tape, D, None, new_arrays(gru)),
        lambda: gru.backward(tape, D, lengths=[1, 2, 3]),
    ):
        with unharmed(gru), pytest.raises(TypeError) as caught:
            call()
        assert not INTERNAL.search(str(caught.value))


# --- arguments of backward ------------------------------------------------------------------------

# What each case of these is refused for is `name`; nothing may have been added anywhere.


def assert_refused(module, tape, name, *kinds, d_output=D, d_state_n=None):
    into = new_arrays(module)
    with unharmed(module), refused(name, *kinds):
        module.backward(tape, d_output, d_state_n, accumulate_into=into)
    assert all((a == 3).all() for a in into.values())


@pytest.mark.parametrize("bad", [None, 3, "tape", object(), {}, X, (D, D)], ids=lambda v: type(v).__name__)
def test_tape(gru, bad):
    assert_refused(gru, bad, "tape", TypeError)


OTHERS = {
    "input_size": ("gru", {"input_size": 6}),
    "hidden_size": ("gru", {"hidden_size": 8}),
    "num_layers": ("gru", {"num_layers": 1}),
    "bidirectional": ("gru", {"num_layers": 2, "bidirectional": True}),
    "dtype": ("gru", {"num_layers": 2, "dtype": np.float64}),
    "form": ("gru_reset_before", {"num_layers": 2}),
    "cell": ("lstm", {"num_layers": 2}),
    "bias": ("gru", {"num_layers": 2, "bias": False}),
    "batch_first": ("gru", {"num_layers": 2, "batch_first": True}),
    "nothing but the weights": ("gru", {"num_layers": 2, "seed": 1}),
}


@pytest.mark.parametrize("difference", OTHERS)
def test_tape_of_another_module(gru, difference):
    cell, options = OTHERS[difference]
    other = make(cell, **options)
    _, _, tape = other.forward(normal((T, B, other.input_size), dtype=other.dtype))
    assert_refused(gru, tape, "tape", ValueError)


def test_tape_of_a_module_with_another_projection(lstm):
    for proj_size in (0, 2):
        _, _, tape = build("lstm", proj_size=proj_size).forward(X)
        assert_refused(lstm, tape, "tape", ValueError, d_output=D[..., :3].copy())


def test_a_tape_comes_from_forward_only(gru):
    """It cannot be made, copied or pickled, since it refers to memory."""
    _, _, tape = gru.forward(X)
    for make_one in (type(tape), lambda: pickle.dumps(tape), lambda: copy.deepcopy(tape)):
        with pytest.raises(TypeError):
            make_one()
    with pytest.raises(AttributeError):
        tape.nbytes = 3


@pytest.mark.parametrize("bad", WRONG)
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_d_output(cell, bad):
    value, kind = WRONG[bad]
    module = build(cell)
    assert_refused(module, module.forward(X)[2], "d_output", kind, d_output=value)


@pytest.mark.parametrize(
    "shape", [(), (H,), (T, H), (B, T, H), (T, B), (T, B, 6), (T, B, 8), (T, 1, H), (1, T, B, H), (0, B, H)]
)
def test_shape_of_d_output(gru, shape):
    assert_refused(gru, gru.forward(X)[2], "d_output", ValueError, d_output=np.zeros(shape, np.float32))


def test_d_output_is_laid_out_like_the_output():
    module = build("gru", batch_first=True)
    _, _, tape = module.forward(X)
    assert_refused(module, tape, "d_output", ValueError, d_output=D.swapaxes(0, 1))
    _, _, tape = module.forward(X[:, 0])
    for shape in ((T, 1, H), (1, T, H), (B, H)):
        assert_refused(module, tape, "d_output", ValueError, d_output=np.zeros(shape, np.float32))
    state = np.zeros((1, 2, H), np.float32)
    assert_refused(module, tape, "d_state_n", ValueError, d_output=D[:, 0], d_state_n=state)


@pytest.mark.parametrize("bad", WRONG)
def test_d_state_n(gru, lstm, bad):
    value, kind = WRONG[bad]
    assert_refused(gru, gru.forward(X)[2], "d_state_n", kind, d_state_n=value)
    _, (h, c), tape = lstm.forward(X)
    d_output = D[..., :3].copy()
    for pair in ((value, c), (h, value), (None, value), [value, None]):
        assert_refused(lstm, tape, "d_state_n", kind, d_output=d_output, d_state_n=pair)


def test_shape_of_d_state_n(gru, lstm):
    _, state_n, tape = gru.forward(X)
    for wrong in (state_n[:1], state_n[:, :2], state_n[:, :, :6], state_n[0], state_n[None], state_n[:, :0]):
        assert_refused(gru, tape, "d_state_n", ValueError, d_state_n=wrong)
    assert_refused(gru, tape, "d_state_n", TypeError, d_state_n=(state_n, state_n))
    _, (h, c), tape = lstm.forward(X)
    d_output = D[..., :3].copy()
    for wrong in ((c, h), (h, h), (c, c), (h,), (h, c, c), (), (h[0], c[0]), (h, c[:, :2])):
        assert_refused(lstm, tape, "d_state_n", ValueError, d_output=d_output, d_state_n=wrong)
    for wrong in (h, "hc", 3, {}):
        assert_refused(lstm, tape, "d_state_n", TypeError, d_output=d_output, d_state_n=wrong)


@pytest.mark.parametrize("bad", [[], "text", 3, object(), X, True], ids=lambda v: type(v).__name__)
def test_accumulate_into(gru, bad):
    with unharmed(gru), refused("accumulate_into", TypeError):
        gru.backward(gru.forward(X)[2], D, accumulate_into=bad)


def test_accumulate_into_has_to_be_changeable(gru):
    into = new_arrays(gru)
    with unharmed(gru), refused("accumulate_into", TypeError):
        gru.backward(gru.forward(X)[2], D, accumulate_into=MappingProxyType(into))
    assert all((a == 3).all() for a in into.values())


SHAPE = (3 * H, H)  # of weight_hh
BAD_PLACES = {
    "none": (None, TypeError),
    "number": (0.0, TypeError),
    "list": ([[0.0] * H] * 3 * H, TypeError),
    "double": (np.full(SHAPE, 3.0), TypeError),
    "half": (np.full(SHAPE, 3, np.float16), TypeError),
    "integers": (np.full(SHAPE, 3), TypeError),
    "objects": (np.full(SHAPE, 3, object), TypeError),
    "big endian": (np.full(SHAPE, 3, ">f4"), TypeError),
    "columns first": (np.full(SHAPE, 3, np.float32, order="F"), TypeError),
    "every other": (np.full((3 * H, 2 * H), 3, np.float32)[:, ::2], TypeError),
    "broadcast": (np.broadcast_to(np.float32(3), SHAPE), TypeError),
    "read-only": (read_only(np.full(SHAPE, 3, np.float32)), ValueError),
    "transposed": (np.full(SHAPE[::-1], 3, np.float32), ValueError),
    "flat": (np.full(3 * H * H, 3, np.float32), ValueError),
    "one row more": (np.full((3 * H + 1, H), 3, np.float32), ValueError),
    "empty": (np.full((0, H), 3, np.float32), ValueError),
}


@pytest.mark.parametrize("bad", BAD_PLACES)
@pytest.mark.parametrize("name", ["weight_hh_l0", "weight_hh_l1"])
def test_places_for_gradients(gru, bad, name):
    """The one array that is wrong is named, and none of them was added to, those before it neither."""
    value, kind = BAD_PLACES[bad]
    into = {**new_arrays(gru), name: value}
    with unharmed(gru), refused(name, kind):
        gru.backward(gru.forward(X)[2], D, accumulate_into=into)
    assert all((np.asarray(a) == 3).all() for k, a in into.items() if k != name)
    if isinstance(value, np.ndarray):
        assert (value == 3).all()


def test_places_for_gradients_may_not_overlap(gru):
    """Neither each other nor an incoming gradient."""
    ones = new_arrays(gru)
    shared = np.full(ones["weight_hh_l0"].size + 2, 3, np.float32)
    hidden = ones["weight_hh_l0"].shape
    for into, d_output in [
        ({"weight_hh_l0": shared[1:-1].reshape(hidden), "weight_hh_l1": shared[2:].reshape(hidden)}, D),
        ({"weight_hh_l0": shared[1:-1].reshape(hidden), "weight_hh_l1": shared[1:-1].reshape(hidden)}, D),
        (
            {"weight_hh_l1": shared[: ones["weight_hh_l1"].size].reshape(hidden)},
            shared[: D.size].reshape(D.shape),
        ),
    ]:
        with unharmed(gru), refused("weight_hh_l[01]", ValueError):
            gru.backward(gru.forward(X)[2], d_output, accumulate_into=ones | into)
    assert (shared == 3).all()


def test_places_of_other_names_are_passed_over(gru):
    expected = new_arrays(gru)
    gru.backward(gru.forward(X)[2], D, accumulate_into=expected)
    into = new_arrays(gru)
    more = into | {"alias": into["weight_hh_l0"], "ragged": [[1], [2, 3]], "empty": into["bias_hh_l0"][:0]}
    gru.backward(gru.forward(X)[2], D, accumulate_into=more)
    assert_same_gradients(into, expected)


def test_places_for_gradients_are_aligned(gru):
    ones = new_arrays(gru)
    shape = ones["weight_hh_l0"].shape
    size = ones["weight_hh_l0"].nbytes
    memory = np.zeros(size + 4, np.uint8)
    places = [memory[start : start + size].view(np.float32).reshape(shape) for start in range(4)]
    unaligned = [place for place in places if not place.flags.aligned]
    assert len(unaligned) == 3
    for place in unaligned:
        with unharmed(gru), refused("weight_hh_l0", ValueError):
            gru.backward(gru.forward(X)[2], D, accumulate_into=ones | {"weight_hh_l0": place})


@pytest.mark.parametrize("name", ["weight_ih_l0", "bias_hh_l1"])
def test_missing_place(gru, name):
    into = new_arrays(gru)
    del into[name]
    with unharmed(gru), refused(name, ValueError):
        gru.backward(gru.forward(X)[2], D, accumulate_into=into)
    assert all((a == 3).all() for a in into.values())


def test_after_all_these_errors_the_tape_still_works(gru):
    _, _, tape = gru.forward(X)
    expected = named(*gru.backward(tape, D))
    for call in (
        lambda: gru.backward(tape, D[:1]),
        lambda: gru.backward(tape, D, D),
        lambda: gru.backward(tape, D, accumulate_into={}),
    ):
        with pytest.raises((ValueError, TypeError)):
            call()
        assert_same_gradients(named(*gru.backward(tape, D)), expected)


# --- threads --------------------------------------------------------------------------------------


def run_both(module, x, state, lengths, d_output, d_state_n, recompute=False):
    output, state_n, tape = module.forward(x, state, lengths=lengths, recompute=recompute)
    return (output, state_n), named(*module.backward(tape, d_output, d_state_n))


@cells
@pytest.mark.parametrize("threads", [1, 2])
def test_eight_python_threads_share_a_module(cell, threads):
    """Different shapes at once, over and over, some ragged: everyone gets what it gets alone."""
    module = make(cell, 17, 33, num_layers=2, bidirectional=True)
    module.forward(normal((1, 1, 17)))
    width = module(normal((1, 1, 17)))[0].shape[-1]
    shapes = [(1, 1), (5, 2), (3, 7), (20, 3), (2, 40), (0, 3), (9, 16), (40, 9)]
    inputs = [
        (
            normal((t, b, 17), seed=b),
            state_of(module, b),
            np.arange(b) % (t + 1),
            normal((t, b, width), seed=t),
            state_of(module, b, seed=9),
            b % 2 == 0,
        )
        for t, b in shapes
    ]
    with gr.num_threads(threads):
        expected = [run_both(module, *i) for i in inputs]

        def repeat(i):
            return lambda: [run_both(module, *i) for _ in range(5)]

        for results, e in zip(together([repeat(i) for i in inputs]), expected, strict=True):
            for result, gradients in results:
                assert_same_bits(result, e[0])
                assert_same_gradients(gradients, e[1])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_threads_share_a_tape(cell):
    """It was made in one thread and is read by many at once."""
    p = problem(cell, 17, 65, 33, 20, num_layers=2, dtype=np.float32)
    expected = p.gradients()
    _, _, tape = p.forward()

    def work():
        return [named(*p.module.backward(tape, p.d_output, p.d_state_n)) for _ in range(5)]

    for results in together([work] * 6):
        for result in results:
            assert_same_gradients(result, expected)


def test_first_forwards_at_once():
    """The weights for backward are packed when they are first wanted, here by eight threads together."""
    for seed in range(5):
        p = problem("lstm", 17, 65, 3, 4, dtype=np.float32, seed=seed)
        for result in together([p.gradients] * 8):
            assert_same_gradients(
                result, problem("lstm", 17, 65, 3, 4, dtype=np.float32, seed=seed).gradients()
            )


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_module_changes_while_others_train(cell):
    """Output and gradients are those of the old weights or those of the new ones, never a mixture."""
    module, other = build(cell, 65, 257, seed=1), build(cell, 65, 257, seed=2)
    x, d_output = normal((3, 2, 65)), normal((3, 2, 257))
    values = [module.state_dict(), other.state_dict()]

    def once(m):
        output, _, tape = m.forward(x)
        return digest({"output": output, **named(*m.backward(tape, d_output))})

    allowed = {once(module), once(other)}

    def write():
        for k in range(60):
            module.load_state_dict(values[k % 2])

    def read():
        return {once(module) for _ in range(60)}

    for seen in together([write, read, read, read])[1:]:
        assert seen <= allowed


# --- processes ------------------------------------------------------------------------------------

# A large problem, so that the parent's worker threads exist, then children; each sends back its bits. The
# parent also hands a tape over a fork.
CHILDREN = """
import json, multiprocessing, sys
import numpy as np
import gatedrnn as gr
from gradients import digest, named, problem

p = problem("lstm", 65, 129, 33, 12, num_layers=2, dtype=np.float32)
tape = p.forward()[2] if __name__ == "__main__" else None

def work(threads):
    gr.set_num_threads(threads)
    return digest(p.gradients())

def work_on_the_tape(threads):
    gr.set_num_threads(threads)
    return digest(named(*p.module.backward(tape, p.d_output, p.d_state_n)))

if __name__ == "__main__":
    method, threads = sys.argv[1], int(sys.argv[2])
    results = [work(threads)]
    with multiprocessing.get_context(method).Pool(2) as pool:
        results += pool.map(work, [1, threads])
        if method == "fork":
            results += pool.map(work_on_the_tape, [1, threads])
    results += [work(threads), work_on_the_tape(threads)]
    print(json.dumps(results))
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("threads", [1, 3])
def test_child_processes(method, threads, tmp_path):
    """A parent that has used its worker threads, then children: they do not hang, and have the same bits."""
    if method == "fork" and sys.platform == "win32":
        pytest.skip("there is no fork on this system")
    script = tmp_path / "children.py"  # a file, as the children of "spawn" import the main script by its path
    script.write_text(CHILDREN, encoding="utf-8")
    results = run_python(script, method, threads, timeout=100)
    assert len(results) == (7 if method == "fork" else 5)
    assert len(set(results)) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_fork_in_a_python_thread():
    """A fork out of a thread other than the main one, while another is inside forward and backward."""
    code = """
import json, os, threading
import numpy as np
import gatedrnn as gr
from gradients import digest, problem
gr.set_num_threads(2)
p = problem("gru", 65, 129, 33, 12, dtype=np.float32)
expected = digest(p.gradients())
stop = threading.Event()
def busy():
    while not stop.is_set():
        p.gradients()
codes = []
def fork():
    for _ in range(5):
        child = os.fork()
        if child == 0:
            os._exit(0 if digest(p.gradients()) == expected else 1)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
threads = [threading.Thread(target=busy), threading.Thread(target=fork)]
for t in threads: t.start()
threads[1].join(); stop.set(); threads[0].join()
print(json.dumps(codes))
"""
    assert run_python(code, timeout=60) == [0] * 5


# --- memory ---------------------------------------------------------------------------------------

MEGABYTE = 2**20
reads_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the size from /proc")
MEMORY = """
import gc, json, sys
import numpy as np
import gatedrnn as gr
from gradients import problem

def memory(kind):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(kind))
"""


@reads_proc
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before", "rnn_tanh"])
@pytest.mark.parametrize("recompute", [False, True])
def test_training_does_not_leak(cell, recompute):
    """Steps that change the weights, tapes that nobody uses, and errors, over and over.

    Each step packs its weights anew; the system's allocator may hold on to the old packs for a few steps. Any
    array of a step that stayed would add up to more.
    """
    code = (
        MEMORY
        + """
p = problem(sys.argv[1], 64, 64, 16, 50, lengths=[50] * 16, num_layers=2, dropout=0.1)
recompute = sys.argv[2] == "True"

def work(n):
    for _ in range(n):
        gradients = p.gradients(recompute=recompute)
        for name, parameter in p.module.parameters().items():
            parameter -= 1e-3 * gradients[name]
        p.forward(recompute=recompute)
        for bad in ({"d_output": p.d_output[1:]}, {"d_output": None, "accumulate_into": {}}):
            try:
                p.module.backward(p.forward()[2], **bad)
            except ValueError:
                pass

work(20)
gc.collect()
before = memory("VmRSS")
work(60)
gc.collect()
packed = sum(v.nbytes for v in p.module.parameters().values())
print(json.dumps([memory("VmRSS") - before, p.forward()[2].nbytes, packed]))
"""
    )
    growth, tape, packed = run_python(code, cell, recompute)
    assert growth <= 4 * tape
    assert 60 * packed > 4 * tape, "the smallest leak would go unnoticed"


@reads_proc
def test_new_weights_find_the_memory_of_the_old():
    """A step after an update touches no new memory for its tape, nor an update for its pack.

    The allocator here keeps none.
    """
    code = """
import json, resource
import numpy as np
from gradients import problem

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

p = problem("lstm", 16, 64, 16, 200, dtype=np.float32)
wide = problem("lstm", 512, 256, 1, 1, dtype=np.float32)  # a tape of nothing but weights

def counted(p):
    counts = []
    for _ in range(6):
        before = faults()
        output, state_n, tape = p.forward()
        counts.append(faults() - before)
        gradients = p.module.backward(tape, p.d_output)[2]
        for name, parameter in p.module.parameters().items():
            parameter -= 1e-3 * gradients[name]
    return counts, (tape.nbytes - output.nbytes) // resource.getpagesize()

packed = sum(parameter.nbytes for parameter in wide.module.parameters().values())
print(json.dumps([counted(p), (counted(wide)[0], 2 * packed // resource.getpagesize())]))
"""
    for counts, pages in run_python(code, environment={"MALLOC_MMAP_THRESHOLD_": "65536"}):
        assert counts[0] > pages * 0.99, "the measurement itself is broken"
        assert max(counts[3:]) < pages / 2


@reads_proc
def test_backward_needs_little_beside_the_tape():
    """Of a long sequence: the output, the gradient of x, the tape with a copy of x, and some scratch."""
    code = (
        MEMORY
        + """
gr.set_num_threads(1)
p = problem("lstm", 64, 64, 4, 10, dtype=np.float32)
p.gradients()
x = np.ones((20_000, 4, 64), np.float32)
before = memory("VmHWM")
output, state_n, tape = p.module.forward(x)
d_x, d_state, gradients = p.module.backward(tape, x)
print(json.dumps([memory("VmHWM") - before, output.nbytes + d_x.nbytes + tape.nbytes + x.nbytes]))
"""
    )
    growth, results = run_python(code)
    assert growth >= results // 2, "the measurement itself is broken"
    assert growth <= results + 16 * MEGABYTE


def test_a_tape_knows_its_size():
    """Twice the steps, about twice the bytes; and recomputing saves most of them."""
    p, longer = problem("lstm", 8, 33, 4, 400), problem("lstm", 8, 33, 4, 800)
    size, twice = p.forward()[2].nbytes, longer.forward()[2].nbytes
    assert isinstance(size, int)
    assert 1.9 * size <= twice <= 2 * size
    assert p.forward(recompute=True)[2].nbytes < size
    assert sum(a.nbytes for a in (p.d_output, *parts(p.state))) < size
