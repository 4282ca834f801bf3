"""Ctrl-C and SIGTERM wait for a moment at which a run is whole."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived; the run has been saved. The command line exits with status 143."""


class Signals:
    """Inside ``with``, Ctrl-C and SIGTERM are remembered and raised by `check`; a second Ctrl-C is raised at once.

    Only the main thread can take signals; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # A process started with the signal ignored (nohup, a shell's background job) goes on ignoring it.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        if kind is None:
            self.check()  # it came after the last safe moment: not to be lost

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def check(self) -> None:
        """A safe moment: raises what has arrived."""
        if self.received is not None:
            self.stop()

    def stop(self) -> NoReturn:
        """Raises what has arrived, here or in another process."""
        number, self.received = self.received, None
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
