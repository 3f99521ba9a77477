"""When long work ends before it is done: out of time, or asked to stop."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

__all__ = [
    "DEAD_KERNEL",
    "ENDINGS",
    "OUT_OF_TIME",
    "TERMINATED",
    "OutOfTimeError",
    "on_termination",
    "termination",
]

OUT_OF_TIME = 75
"""The exit status of work that kept what it did and goes on when called again (EX_TEMPFAIL)."""
DEAD_KERNEL = 71
"""The exit status of a chapter whose kernel died, as when memory is over (EX_OSERR)."""
TERMINATED = 128 + 15
"""The exit status of work that SIGTERM ended: what a shell shows for a process that it killed."""


ENDINGS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The signals that tell a process to end; a terminal that is closed sends the second."""


class OutOfTimeError(TimeoutError):
    """The minutes are over; what was done is kept, and the same call goes on."""


@contextlib.contextmanager
def on_termination(handler: Callable[..., None]) -> Iterator[None]:
    """Inside, what the :data:`ENDINGS` call, but for SIGHUP where it is ignored, as by ``nohup``.

    Outside the main thread, where Python handles no signals, they end the process as ever.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in ENDINGS:
            if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)


@contextlib.contextmanager
def termination() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM and SIGHUP end nothing by themselves: what this yields says if one came.

    Whoever asks now and then saves what was done, and ends with ``sys.exit(TERMINATED)``.
    """
    told = threading.Event()
    with on_termination(lambda *_: told.set()):
        yield told.is_set
