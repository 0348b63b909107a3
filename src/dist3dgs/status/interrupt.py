"""Ctrl-C during a run of Snakemake: once stops the run in order, more often changes nothing.

By default every Ctrl-C is a `KeyboardInterrupt` wherever Snakemake is at that moment. The first ends its scheduling,
as it should; the next one breaks its wait for the jobs that are ending, and prints Snakemake's and asyncio's traceback.
"""

import signal
import threading


class Interrupts:
    """Counts Ctrl-C; the first one unwinds the main thread."""

    def __init__(self) -> None:
        self.count = 0

    def install(self) -> None:
        """Handle SIGINT from now on; not where it is ignored (nohup), handled by others, or not in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        self.count += 1
        if self.count == 1:
            # Snakemake's scheduler takes it as a KeyboardInterrupt; elsewhere it ends the process without a traceback.
            raise SystemExit(128 + number)


#: Of this process.
INTERRUPTS = Interrupts()
