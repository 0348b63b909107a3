"""A bound on work that might never end."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def ends_within(*, cpu_s: float, what: str = "this") -> Iterator[None]:
    """Interrupt the block with AssertionError once it has taken `cpu_s` seconds of processor time.

    For input that must not make a program hang. It measures no speed: the bound is many times what the slowest machine
    needs, and processor time does not pass while other programs have the machine.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        raise AssertionError(f"{what} had not ended after {cpu_s:g} s of processor time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
