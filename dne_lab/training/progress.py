"""What is seen of a run while it runs: a bar per task in a terminal or notebook, otherwise a line per task."""

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn

from dne_lab.core.errors import visible


class Progress:
    """A task's progress. ``total`` steps, ``done`` of which were made before."""

    def __init__(self, wanted: bool, title: str, total: int, done: int) -> None:
        self.title, self.wanted = title, wanted
        self.bar: Any = None
        if wanted and _has_bars():
            self.bar = _bar(title, total, done, leave=True)

    def stage(self, name: str) -> None:
        """Names what is done now."""
        if self.bar is not None:
            self.bar.set_description(f"{self.title} {name}")

    def step(self, loss: float | None) -> None:
        """One more step."""
        if self.bar is not None:
            if loss is not None:
                self.bar.set_postfix({"loss": f"{loss:.3f}"}, refresh=False)
            self.bar.update(1)

    def close(self, result: str = "") -> None:
        """The end of the task (or an interruption, without a result)."""
        if self.bar is not None:
            if result:
                self.bar.set_description(f"{self.title} {result}")
            self.bar.close()
        elif self.wanted and result:
            print(visible(f"{self.title}: {result}"), file=sys.stderr, flush=True)


class Board:
    """Several runs that are trained at a time: a line for whatever is finished and, in a terminal, a bar per run."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self.bars: dict[str, Any] = {}

    def step(self, title: str, done: int, total: int) -> None:
        """A run has learned ``done`` of ``total`` epochs."""
        if not (self.wanted and _has_bars()):
            return
        if title not in self.bars:
            self.bars[title] = _bar(title, total, done, leave=False)
        self.bars[title].update(done - self.bars[title].n)

    def say(self, line: str) -> None:
        """A line that stays, above the bars."""
        if not self.wanted:
            return
        if self.bars:
            from tqdm.auto import tqdm

            tqdm.write(visible(line), file=sys.stderr)
        else:
            print(visible(line), file=sys.stderr, flush=True)

    def end(self, title: str) -> None:
        """A run is no longer trained."""
        if title in self.bars:
            self.bars.pop(title).close()

    def close(self) -> None:
        """No run is trained any more."""
        for title in list(self.bars):
            self.end(title)


def _bar(title: str, total: int, done: int, leave: bool) -> Any:
    """A bar as wide as its terminal or its cell of a notebook: no more words than fit into one line of 80 letters, and
    of a cell in a window of 1000 pixels. The learning rate is in the run's curves."""
    from tqdm.auto import tqdm

    words = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
    return tqdm(total=total, initial=done, desc=title, leave=leave, bar_format=words, dynamic_ncols=True)


def _has_bars() -> bool:
    """Whether what is written can be a bar: in a terminal or a notebook, not in a file."""
    from tqdm.auto import tqdm

    return tqdm.__module__.endswith("notebook") or "ipykernel" in sys.modules or sys.stderr.isatty()


# Ctrl-C, SIGTERM and what queues and closed terminals send wait for a moment at which a run is whole.


class Terminated(KeyboardInterrupt):
    """A signal other than Ctrl-C arrived; the run has been saved. The command line exits with ``status``."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(number)
        self.status = 128 + number  # as a shell has it: 143 for SIGTERM


class OutOfTime(Exception):
    """The seconds given to `Run.train` are over; never leaves it."""


# What a queue sends before the time is over (SLURM's --signal), and the end of a connection.
WARNINGS = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2", "SIGHUP") if hasattr(signal, name))
# Handlers of these that give way while a run trains; one that the user's own program has does not.
YIELDING: list[Any] = [signal.SIG_DFL]


class Signals:
    """Inside ``with``, Ctrl-C, SIGTERM, SIGUSR1, SIGUSR2 and SIGHUP are remembered and raised by `check`; a second
    Ctrl-C is raised at once.

    Only the main thread can take signals; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, *WARNINGS):
                # A process started with the signal ignored (nohup, a shell's background job) goes on ignoring it, and
                # a handler that the user's own program has for one of the others stays.
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None) and (number not in WARNINGS or before in YIELDING):
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
            self.stop(self.received)

    def stop(self, number: int) -> NoReturn:
        """Raises what has arrived, here or in another process."""
        self.received = None
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)
