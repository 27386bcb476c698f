"""On a device, beside cuDNN: ``python bench/beside_cudnn.py [--train]``.

Both sides get the same parameters and the same input on the device, and their outputs, with ``--train``
their gradients too, are compared first. Times are those of CUDA events around a call, medians over rounds in
which both run in turns; TF32 is off on both sides, or with ``--precision tf32`` on.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import gatedrnn as gr

HIDDEN, BATCHES, STEPS = (128, 256, 512, 1024), (1, 16, 64, 256), 200
LONG = (256, 1, 1000)  # H, B, T: one row for many steps
CELLS = ("LSTM", "GRU", "GRU_BEFORE")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 where outputs disagree."""
    parser = argparse.ArgumentParser(prog="python bench/beside_cudnn.py", description=__doc__)
    parser.add_argument("--train", action="store_true", help="forward and backward")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--hidden", nargs="+", type=int, default=list(HIDDEN), metavar="H")
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES), metavar="B")
    parser.add_argument("--steps", type=int, default=STEPS, metavar="T")
    parser.add_argument("--precision", choices=("float32", "tf32"), default="float32")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    try:
        torch: Any = importlib.import_module("torch")
    except ModuleNotFoundError:
        parser.error("needs PyTorch, which is not installed")
    if not torch.cuda.is_available():
        parser.error("this PyTorch has no device")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.precision == "tf32"
    versions = f"PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}"
    print(f"gatedrnn {gr.__version__} beside {versions}")
    print(f"on {torch.cuda.get_device_name()}, {options.precision}, {_task(options)}\n")
    print(f"{'':30}{'us':>10} {'other / ours':>14}")
    ratios: dict[str, list[float]] = {cell: [] for cell in options.cells}
    agree = True
    grid = itertools.product(options.hidden, options.batches, (options.steps,))
    for cell, shape in itertools.product(options.cells, (*grid, LONG)):
        ours, theirs, same = _pair(torch, cell, shape, options)
        agree &= same
        our_seconds, their_seconds = _interleaved(torch, ours, theirs, options.rounds)
        ratio = their_seconds / our_seconds
        if shape != LONG:
            ratios[cell].append(ratio)
        label = f"{cell} H={shape[0]} B={shape[1]} T={shape[2]}"
        note = "" if same else "  results disagree"
        print(f"{label:30}{our_seconds * 1e6:10.1f} {ratio:14.2f}{note}", flush=True)
    for cell, values in ratios.items():
        mean = math.exp(statistics.fmean(map(math.log, values)))
        beside = "our GRU, reset after" if cell == "GRU_BEFORE" else "cuDNN"
        print(f"{cell}: geometric mean {mean:.2f} against {beside}, smallest {min(values):.2f}")
    return 0 if agree else 1


def _task(options: argparse.Namespace) -> str:
    return "forward and backward" if options.train else "forward"


def _pair(
    torch: Any, cell: str, shape: tuple[int, int, int], options: argparse.Namespace
) -> tuple[Callable[[], Any], Callable[[], Any], bool]:
    """What to time of ours, and of cuDNN's or, for the form that it has not, of our other form."""
    precision = None if options.precision == "float32" else options.precision
    hidden, batch, steps = shape
    torch.manual_seed(0)
    x = torch.randn(steps, batch, hidden, device="cuda")
    d_output = torch.randn(steps, batch, hidden, device="cuda")
    reset_after = {"reset_after": False} if cell == "GRU_BEFORE" else {}
    constructor: Any = gr.LSTM if cell == "LSTM" else gr.GRU
    module = constructor(hidden, hidden, seed=0, device="cuda", precision=precision, **reset_after)
    ours = _training(module, x, d_output) if options.train else lambda: module(x)
    if cell == "GRU_BEFORE":
        other = gr.GRU(hidden, hidden, seed=0, device="cuda", precision=precision)
        return ours, _training(other, x, d_output) if options.train else lambda: other(x), True
    theirs = getattr(torch.nn, cell)(hidden, hidden).cuda()
    module.load_state_dict(theirs.state_dict())

    def train() -> Any:
        theirs.zero_grad(set_to_none=True)
        inputs = x.detach().requires_grad_()
        theirs(inputs)[0].backward(d_output)
        return inputs.grad

    def infer() -> None:
        with torch.inference_mode():
            theirs(x)

    tolerance = 1e-2 if precision else 1e-4
    with torch.inference_mode():
        same = _close(torch, module(x)[0], theirs(x)[0], tolerance)
    if options.train:
        d_input, _, gradients = ours()
        same &= _close(torch, d_input, train(), tolerance)
        for name, parameter in theirs.named_parameters():
            same &= _close(torch, torch.from_dlpack(gradients[name]), parameter.grad, tolerance)
    return ours, train if options.train else infer, same


def _close(torch: Any, ours: Any, theirs: Any, tolerance: float) -> bool:
    """Whether no difference is more than this part of the largest value."""
    return bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max())


def _training(module: Any, x: Any, d_output: Any) -> Callable[[], Any]:
    def run() -> Any:
        _, _, tape = module.forward(x)
        return module.backward(tape, d_output)

    return run


def _interleaved(
    torch: Any, ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int
) -> tuple[float, float]:
    """Median seconds of each, in turns."""

    def timed(run: Callable[[], Any]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    seconds: tuple[list[float], list[float]] = ([], [])
    for round_ in range(rounds + 2):  # two to warm up
        for run, to in zip((ours, theirs), seconds, strict=True):
            taken = timed(run)
            if round_ >= 2:
                to.append(taken)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


if __name__ == "__main__":
    raise SystemExit(main())
