"""What the examples share: two ways to the same answer, timed side by side."""

import statistics
import time

PAUSE = (
    0.1  # seconds: so long the threads of others may go on spinning, after 50 ms those of ONNX Runtime stop
)


def beside(what, theirs, ours, rounds=9):
    """Time both in turns, print the medians, and return what each gave."""
    answers = theirs(), ours()
    seconds = {theirs: [], ours: []}
    for _ in range(rounds):
        for way, taken in seconds.items():
            time.sleep(PAUSE)
            way()  # wakes threads and fills caches again
            start = time.perf_counter()
            way()
            taken.append(time.perf_counter() - start)
    before, now = (statistics.median(taken) for taken in seconds.values())
    times = f"{1e3 * before:.2f} ms before, {1e3 * now:.2f} ms with gatedrnn"
    print(f"{what}: {times}, {before / now:.1f} x as fast")
    return answers
