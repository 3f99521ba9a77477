"""When long work ends before it is done: out of time, or asked to stop."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

__all__ = ["DEAD_KERNEL", "OUT_OF_TIME", "TERMINATED", "OutOfTimeError", "termination"]

OUT_OF_TIME = 75
"""The exit status of work that kept what it did and goes on when called again (EX_TEMPFAIL)."""
DEAD_KERNEL = 71
"""The exit status of a chapter whose kernel died, as when memory is over (EX_OSERR)."""
TERMINATED = 128 + 15
"""The exit status of work that SIGTERM ended: what a shell shows for a process that it killed."""


class OutOfTimeError(TimeoutError):
    """The minutes are over; what was done is kept, and the same call goes on."""


@contextlib.contextmanager
def termination() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM ends nothing by itself: what this yields says whether it came.

    Whoever asks now and then saves what was done, and ends with ``sys.exit(TERMINATED)``. Outside
    the main thread, where Python handles no signals, SIGTERM ends the process as ever.
    """
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        yield told.is_set
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
