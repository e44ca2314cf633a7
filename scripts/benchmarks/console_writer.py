"""Appends lines to consoles at an even rate, as VMMs would. ``python -m … LINES_PER_S SECONDS CONSOLE…``.

A process of its own: a thread of the reader would wait for the interpreter's lock, and its lines with it. Each line is
the time of its writing (``@`` and nanoseconds of the monotonic clock). Prints at the end how many lines it wrote.
"""

from __future__ import annotations

import os
import sys
import time

TICK_S = 0.001


def write(lines_per_s: float, seconds: float, consoles: list[str]) -> int:
    """The number of lines written."""
    fds = [os.open(path, os.O_WRONLY | os.O_APPEND) for path in consoles]
    for fd in fds:
        os.write(fd, b"\r\n")  # the guest may have been paused within a line
    total, written, began = int(lines_per_s * seconds), 0, time.perf_counter()
    while written < total:
        due = min(total, int((time.perf_counter() - began) * lines_per_s))
        while written < due:
            os.write(fds[written % len(fds)], b"@%d\r\n" % time.perf_counter_ns())
            written += 1
        time.sleep(TICK_S)
    return written


if __name__ == "__main__":
    print(write(float(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
