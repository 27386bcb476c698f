"""`fit` stopped amid an epoch by Ctrl-C, SIGTERM or an error, and going on from there to the last bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

import gatedrnn as gr
from gatedrnn import train
from helpers import run_python
from training_runs import Run, Scripted, assert_same_run

needs_kill = pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends the process on Windows")
BATCHES = 8  # in an epoch of `Run`


def press(number=signal.SIGINT):
    os.kill(os.getpid(), number)


class Interrupted(Run):
    """`Run` in which something happens in each of some calls, counted over all: after `at` of them."""

    def __init__(self, what=None, at=(), where="loss_and_gradients", **options):
        super().__init__(**options)
        self.what, self.at, self.count, self.steps = what, at, 0, []
        self.happens_in = where

    def happen(self, where):
        if where == self.happens_in:
            self.count += 1
            if self.count - 1 in self.at:
                self.what()

    def loss_and_gradients(self, batch):
        result = super().loss_and_gradients(batch)
        self.happen("loss_and_gradients")
        self.steps.append(self.optimizer.steps)
        return result

    def batches(self, rng):
        for batch in super().batches(rng):
            self.happen("batches")
            yield batch

    def validate(self):
        self.happen("validate")
        return super().validate()


def raise_interrupt():
    raise KeyboardInterrupt


def straight_run(epochs=3, **options):
    run = Run()
    return run, run.fit(epochs, validate=run.validate, max_norm=1.0, **options)


STOPS = {
    "raised in the first update": (raise_interrupt, [0], "loss_and_gradients"),
    "raised": (raise_interrupt, [5], "loss_and_gradients"),
    "raised in another epoch": (raise_interrupt, [BATCHES + 3], "loss_and_gradients"),
    "raised twice": (raise_interrupt, [3, 7], "loss_and_gradients"),
    "raised while a batch is made": (raise_interrupt, [4], "batches"),
    "raised in validation": (raise_interrupt, [1], "validate"),
    "ctrl-c": (press, [5], "loss_and_gradients"),
    "ctrl-c in the last update of an epoch": (press, [BATCHES - 1], "loss_and_gradients"),
    "ctrl-c while a batch is made": (press, [BATCHES + 2], "batches"),
    "ctrl-c in validation": (press, [1], "validate"),
}


@needs_kill
@pytest.mark.parametrize("schedule", [None, train.schedules.cosine(0.05, 24, warmup=5)])
@pytest.mark.parametrize("stop", STOPS)
def test_an_interrupted_run_goes_on_with_the_same_bits(stop, schedule, tmp_path, capsys):
    what, at, where = STOPS[stop]
    path = tmp_path / "run.safetensors"
    straight, expected = straight_run(schedule=schedule)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    count, steps = 0, []
    for k in range(len(at)):
        run = Interrupted(what, at, where, seed=7 + 90 * k)  # the generator is the file's
        run.count = count
        with pytest.raises(KeyboardInterrupt):
            run.fit(3, validate=run.validate, max_norm=1.0, schedule=schedule, checkpoint=path)
        count = run.count
        steps += run.steps
        saved = path.exists()
        assert saved == (run.optimizer.steps > 0)
        assert (f"saved to {path}: call fit again to go on" in capsys.readouterr().err) == saved
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    run = Interrupted(seed=7 if not saved else 99)
    history = run.fit(3, validate=run.validate, max_norm=1.0, schedule=schedule, checkpoint=path)
    assert history == expected
    assert steps + run.steps == list(range(3 * BATCHES))
    assert_same_run(run.everything(), straight.everything())


def test_an_update_is_never_half_saved(tmp_path, monkeypatch):
    """Where something else than the default handler interrupts it."""
    path, run = tmp_path / "run", Run()
    run.fit(1, checkpoint=path)
    before, step = path.read_bytes(), train.Adam._update

    def broken(self, *arrays, **options):
        step(self, *arrays, **options)
        if self.steps == 12:
            raise KeyboardInterrupt

    monkeypatch.setattr(train.Adam, "_update", broken)
    with pytest.raises(KeyboardInterrupt):
        run.fit(2, checkpoint=path)
    assert path.read_bytes() == before


def test_dropout_and_generators_go_on(tmp_path):
    """Though the update that was interrupted had drawn already, and the loss draws from `rng` too."""
    path = tmp_path / "run"
    x = np.random.default_rng(0).standard_normal((6, 4, 3), np.float32)

    def run(stop=None, **options):
        gru = gr.GRU(3, 8, num_layers=2, dropout=0.5, seed=1)
        optimizer, rng, count = train.Adam(gru.parameters()), np.random.default_rng(3), [0]

        def batches(rng):
            return (x + rng.standard_normal(x.shape, np.float32) for _ in range(5))

        def loss_and_gradients(batch):
            output, _, tape = gru.forward(batch)
            loss, d_output = train.mse(output, rng.standard_normal(output.shape))
            count[0] += 1
            if count[0] == stop:
                raise KeyboardInterrupt
            return loss, gru.backward(tape, d_output)[2]

        train.fit(gru, optimizer, loss_and_gradients, batches, epochs=2, rng=rng, progress=False, **options)
        return {**gru.state_dict(), "next": rng.standard_normal(3), "dropped": gru.forward(x)[0]}

    straight = run()
    for stop in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            run(stop, checkpoint=path)
    assert_same_run(run(checkpoint=path), straight)


@pytest.mark.parametrize("bits", ["PCG64", "MT19937", "Philox", "SFC64"])
def test_every_generator_goes_back_to_the_epochs_start(bits, tmp_path):
    path = tmp_path / "run"

    def made(**options):
        run = Interrupted(**options)
        run.rng = np.random.Generator(getattr(np.random, bits)(3))
        return run

    straight, run, resumed = made(), made(what=raise_interrupt, at=[11]), made()
    straight.fit(2)
    with pytest.raises(KeyboardInterrupt):
        run.fit(2, checkpoint=path)
    resumed.fit(2, checkpoint=path)
    assert_same_run(resumed.net.state_dict(), straight.net.state_dict())
    assert resumed.rng.random() == straight.rng.random()


@needs_kill
def test_sigterm_in_another_process(tmp_path):
    """As the shell knows it, with status 143; and the next process goes on."""
    code = """
import os, signal, sys
import numpy as np
from training_runs import Run
class Stopped(Run):
    def loss_and_gradients(self, batch):
        if self.optimizer.steps == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGTERM)
        return super().loss_and_gradients(batch)
run = Stopped()
try:
    run.fit(3, checkpoint=sys.argv[1])
finally:
    print(run.optimizer.steps, flush=True)
"""

    def process(at):
        return subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "run"), str(at)],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
            timeout=60,
            check=False,
        )

    stopped = process(10)
    assert (stopped.returncode, stopped.stdout) == (143, "11\n"), stopped.stderr
    assert "interrupted after step 11, saved to" in stopped.stderr
    assert process(-1).stdout == "24\n"
    straight, run = Run(), Run()
    straight.fit(3)
    run.fit(3, checkpoint=tmp_path / "run")
    assert_same_run(run.everything(), straight.everything())


@needs_kill
def test_the_second_ctrl_c_ends_the_run_at_once(tmp_path, monkeypatch):
    path, run = tmp_path / "run", Interrupted(lambda: (press(), press()), [5])
    with pytest.raises(KeyboardInterrupt):
        run.fit(2, checkpoint=path)
    assert (run.optimizer.steps, path.exists()) == (5, False)
    run = Interrupted(press, [5])
    write, writes = os.fsync, []

    def slow(file):
        writes.append(file)
        press()
        write(file)

    monkeypatch.setattr(os, "fsync", slow)
    with pytest.raises(KeyboardInterrupt):
        run.fit(2, checkpoint=path)
    assert (len(writes), os.listdir(tmp_path)) == (1, [])


@needs_kill
def test_a_signal_is_not_lost_to_an_error(tmp_path):
    def fail():
        press()
        raise ValueError("broken")

    with pytest.raises(KeyboardInterrupt) as caught:
        Interrupted(fail, [5]).fit(2, checkpoint=tmp_path / "run")
    assert "broken" in str(caught.value.__context__)


@needs_kill
def test_handlers_of_others_stay(tmp_path):
    """What they raise is an interruption like any other; so is what the script sets amid the run."""

    class OwnError(Exception):
        pass

    seen = []

    def note(number, frame):
        seen.append(number)

    def stop(number, frame):
        raise SystemExit(3)

    before = signal.signal(signal.SIGTERM, note)
    try:
        run = Interrupted(lambda: press(signal.SIGTERM), [5])
        run.fit(2, checkpoint=tmp_path / "a")
        assert (seen, run.optimizer.steps) == ([signal.SIGTERM], 16)
        signal.signal(signal.SIGTERM, stop)
        run = Interrupted(lambda: press(signal.SIGTERM), [5])
        with pytest.raises(SystemExit) as caught:
            run.fit(2, checkpoint=tmp_path / "b")
        assert (caught.value.code, (tmp_path / "b").exists()) == (3, True)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        run = Interrupted(lambda: signal.signal(signal.SIGTERM, note), [5])
        run.fit(2, checkpoint=tmp_path / "c")
        assert signal.getsignal(signal.SIGTERM) is note
    finally:
        signal.signal(signal.SIGTERM, before)


def test_without_a_checkpoint_nothing_is_touched():
    seen = []

    def look():
        seen.append([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)])

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    Interrupted(look, [0]).fit(1)
    assert seen == [before]
    with pytest.raises(KeyboardInterrupt):
        Interrupted(raise_interrupt, [3]).fit(1)


def test_in_another_thread(tmp_path):
    """Signals are the main thread's."""
    results = []

    def work():
        run = Interrupted(raise_interrupt, [5])
        try:
            run.fit(1, checkpoint=tmp_path / "run")
        except KeyboardInterrupt:
            results.append(run.optimizer.steps)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [5]
    run = Run()
    run.fit(1, checkpoint=tmp_path / "run")
    straight = Run()
    straight.fit(1)
    assert_same_run(run.everything(), straight.everything())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_forked_workers_end_as_they_would(tmp_path):
    """A process that makes batches has to end when it is told to."""
    code = """
import json, os, signal, sys, time
from training_runs import Run
codes = []
class Forking(Run):
    def loss_and_gradients(self, batch):
        if self.optimizer.steps == 3:
            for number in (signal.SIGTERM, signal.SIGINT):
                child = os.fork()
                if child == 0:
                    try:
                        time.sleep(60)
                    except KeyboardInterrupt:
                        os._exit(77)
                    os._exit(1)
                time.sleep(0.3)
                os.kill(child, number)
                codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        return super().loss_and_gradients(batch)
Forking().fit(1, checkpoint=sys.argv[1])
print(json.dumps(codes))
"""
    assert run_python(code, tmp_path / "run", timeout=60) == [-signal.SIGTERM, 77]


def test_an_epoch_that_became_shorter_is_refused(tmp_path):
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        Interrupted(raise_interrupt, [5]).fit(1, checkpoint=path)
    run = Run()
    whole = run.batches
    run.batches = lambda rng: whole(rng)[:4]
    with pytest.raises(ValueError, match=r"batches: .* checkpoint's epoch, of which 5 are done, got 4"):
        run.fit(1, checkpoint=path)


def test_another_kind_of_generator_is_refused(tmp_path):
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        Interrupted(raise_interrupt, [5]).fit(1, checkpoint=path)
    run = Run()
    before = run.everything()
    rng = np.random.Generator(np.random.MT19937(0))
    with pytest.raises(ValueError, match="rng: expected the state of a MT19937, got 'PCG64'"):
        run.fit(1, checkpoint=path, rng=rng)
    assert_same_run(run.everything(), before)


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": {"losses": [1.0]}},
        {"epoch": {"losses": ["x"], "rng": {}}},
        {"epoch": 3},
        {"mode": "best"},
        {"hyper_parameters": [1]},
        {"scheduled": 1},
        {"more": 1},
    ],
)
def test_damaged_notes_are_refused(changes, tmp_path):
    path, run = tmp_path / "run", Scripted([])
    notes = {"loss": [1.0], "validation": [], "step": 1, **changes}
    train.save_checkpoint(path, run.layer, run.optimizer, notes=notes)
    with pytest.raises(ValueError, match="checkpoint: expected one that fit wrote"):
        run.fit(2, validate=None, checkpoint=path)


# ---- hyper-parameters of a run that goes on ----


def first_part(path, epochs=1, optimizer=train.AdamW, schedule=None, **options):
    run = Run(optimizer=optimizer, **options)
    run.fit(epochs, checkpoint=path, schedule=schedule)
    return run


CHANGES = [
    (train.AdamW, {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-6}, {"lr": 0.02}),
    (train.AdamW, {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-6}, {"betas": (0.8, 0.99), "eps": 1e-5}),
    (train.AdamW, {"weight_decay": 0.1}, {"weight_decay": 0.0}),
    (train.SGD, {"momentum": 0.5, "dampening": 0.1}, {"momentum": 0.9, "weight_decay": 0.1}),
    (train.RMSprop, {"alpha": 0.9}, {"alpha": 0.99, "lr": 0.5}),
]


@pytest.mark.parametrize(("cls", "options", "changes"), CHANGES)
def test_what_the_script_changed_counts_and_is_said(cls, options, changes, tmp_path):
    path = tmp_path / "run"
    before = first_part(path, optimizer=cls, **options).optimizer.hyper_parameters()
    run = Run(optimizer=cls, **options | changes)
    with pytest.warns(UserWarning, match="which counts from here on") as caught:
        run.fit(2, checkpoint=path)
    assert run.optimizer.hyper_parameters() == {**before, **changes}
    said = [str(warning.message) for warning in caught]
    assert [text.partition(":")[0] for text in said] == [name for name in before if name in changes]
    for name, value in changes.items():
        expected = f"{name}: the checkpoint's run had {before[name]}, the optimizer has {value},"
        assert any(text.startswith(expected) for text in said)
    run = Run(optimizer=cls, **options | changes)
    run.fit(3, checkpoint=path)  # what was said once is so from there on


def test_what_the_run_itself_changed_goes_on(tmp_path):
    """Such as a rate that a validation lowers: nobody edited the script."""
    path = tmp_path / "run"

    def run_to(epochs, **options):
        run = Run(lr=0.1, optimizer=train.SGD)

        def validate():
            run.optimizer.lr *= 0.5
            return run.validate()

        run.fit(epochs, validate=validate, **options)
        return run

    run_to(2, checkpoint=path)
    assert_same_run(run_to(4, checkpoint=path).everything(), run_to(4).everything())


def test_a_schedule_decides_the_rate(tmp_path):
    path = tmp_path / "run"
    schedule = train.schedules.step(0.1, 4)
    first_part(path, lr=0.3, schedule=schedule)
    run = Run(optimizer=train.AdamW, lr=0.7)
    run.fit(2, checkpoint=path, schedule=train.schedules.constant(0.05))
    assert run.optimizer.lr == 0.05
    run = Run(optimizer=train.AdamW, lr=0.7)
    with pytest.warns(UserWarning, match=r"lr: the checkpoint's run had 0.05, the optimizer has 0.7"):
        run.fit(3, checkpoint=path)
    assert run.optimizer.lr == 0.7


def test_checkpoints_of_the_earlier_version_go_on(tmp_path):
    """Their notes had three names, their optimisers' state the rate alone."""
    path = tmp_path / "run"
    saved = Run(lr=0.02)
    history = saved.fit(1)
    old = saved.optimizer.state_dict()
    for name in saved.optimizer.hyper_parameters():
        if name != "lr":
            del old[name]
    saved.optimizer.state_dict = lambda: old
    notes = {"loss": history.loss, "validation": [], "step": history.step}
    train.save_checkpoint(path, saved.net, saved.optimizer, rng=saved.rng, notes=notes)
    straight = Run(lr=0.02)
    straight.fit(2)
    resumed = Run(lr=0.02)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.fit(2, checkpoint=path)
    assert_same_run(resumed.everything(), straight.everything())
    path.unlink()
    train.save_checkpoint(path, saved.net, saved.optimizer, rng=saved.rng, notes=notes)
    run = Run(lr=0.05)
    with pytest.warns(UserWarning, match=r"lr: the checkpoint's run had 0.02, the optimizer has 0.05"):
        run.fit(2, checkpoint=path)
    assert run.optimizer.lr == 0.05


def test_what_cannot_be_changed_is_refused(tmp_path):
    """Whether there is momentum decides what there is to go on with."""
    path = tmp_path / "run"
    first_part(path, optimizer=train.SGD, momentum=0.9)
    run = Run(optimizer=train.SGD)
    before = run.everything()
    with pytest.raises(ValueError, match=r"run: expected a checkpoint of this run: .*momentum_buffer"):
        run.fit(2, checkpoint=path)
    assert_same_run(run.everything(), before)
