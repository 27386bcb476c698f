"""What the examples share: two ways to the same answer, timed side by side."""

import statistics
import time


def beside(what, theirs, ours, rounds=7):
    """Time both in turns, print the medians, and return what each gave."""
    answers = theirs(), ours()  # and warm up
    seconds = {theirs: [], ours: []}
    for _ in range(rounds):
        for way, taken in seconds.items():
            start = time.perf_counter()
            way()
            taken.append(time.perf_counter() - start)
    before, now = (statistics.median(taken) for taken in seconds.values())
    times = f"{1e3 * before:.2f} ms before, {1e3 * now:.2f} ms with gatedrnn"
    print(f"{what}: {times}, {before / now:.1f} x as fast")
    return answers
