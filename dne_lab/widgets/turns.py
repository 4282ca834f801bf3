"""What the browser says to an explorer, one thing after the other, in the thread that made the explorer."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from ipywidgets import Widget

from dne_lab.widgets.panel import belonging

LOOK = 0.2  # seconds after which a waiting thread looks whether the kernel still runs


class Turns:
    """Whatever is handed over is done by one thread, in order: nothing begins while something else is half done.

    JupyterLab sends what is done to widgets to a thread of its own in the kernel (a subshell), and ipykernel answers
    some of it there and some in the thread of the cells, at the same time. Explorers hook into networks, and what is
    chosen while a view is being computed must not be lost: so all of it waits for its turn. A cell that runs is waited
    for too; a run that trains lets the explorers that follow it `catch_up`.

    The thread is the one that calls this. Outside a notebook, where it has no event loop, nobody hands over from
    another thread, and everything is done at once.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._waiting: deque[Callable[[], None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None

    def take(self, work: Callable[[], object]) -> None:
        """Does ``work``; returns when it is done, in this thread or in the one that everything is done in."""
        if self._loop is None or threading.get_ident() == self._thread:
            work()
            return
        context, done = copy_context(), threading.Event()  # the context says whose answer is sent

        def turn() -> None:
            try:
                context.run(work)
            finally:
                done.set()

        self._waiting.append(turn)
        self._loop.call_soon_threadsafe(self.catch_up)
        while not done.wait(LOOK) and self._loop.is_running():  # a kernel that ends does no more
            continue

    def catch_up(self) -> None:
        """Does what is waiting; in another thread than the one that everything is done in, nothing.

        What goes wrong in a turn is told to the event loop, as where the loop itself does it: the training that lets
        explorers catch up goes on.
        """
        while self._waiting and threading.get_ident() == self._thread:
            try:
                self._waiting.popleft()()
            except Exception as error:
                assert self._loop is not None  # only then is anything waiting
                self._loop.call_exception_handler({"message": "what was chosen in an explorer", "exception": error})


def in_turn(root: Widget) -> Turns:
    """From now on messages to a widget, and to all that belong to it by now, take turns."""
    turns = Turns()
    for widget in belonging(root):
        if widget.comm is not None:
            widget.comm.on_msg(_taking(turns, widget._handle_msg))
    return turns


def _taking(turns: Turns, handle: Callable[[Any], None]) -> Callable[[Any], None]:
    return lambda message: turns.take(lambda: handle(message))
