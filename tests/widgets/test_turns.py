"""What the browser says while an explorer computes, in another thread of the kernel, is done and is done in turn."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import tiny

import dne_lab as lab
from dne_lab.models.variants import DNE
from dne_lab.training.run import Run
from dne_lab.widgets.explorer import Explorer
from dne_lab.widgets.turns import Turns

SMALL: dict[str, Any] = {
    "learn__epochs": 1, "tune__epochs": 1, "learn__batch": 8, "network__depth": 2, "network__head_width": 4,
    "network__heads": (2, 1), "network__patch": 4, "memory__budget": 10, "progress": False, "device": "cpu",
}  # fmt: skip


def chosen(control: Any, place: int) -> None:
    """The browser's message that another place of a choice was chosen."""
    data = {"method": "update", "state": {"index": place}, "buffer_paths": []}
    control.comm.handle_msg({"content": {"data": data}, "buffers": []})


def elsewhere(work: Callable[[], None], made: Explorer) -> threading.Thread:
    """``work`` in a thread of its own, begun, and either done or waiting for its turn."""
    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive() and not made._turns._waiting:
        thread.join(0.01)
    return thread


def test_what_is_chosen_while_a_view_is_computed_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    async def kernel() -> None:
        made = lab.explore({"DNE": tiny.model(DNE, (2, 1, 1))}, tiny.images(4), tab="what_if")
        assert isinstance(made, Explorer)
        part: Any = made.part
        update, threads, depth, places = part.update, [], [], []

        def slow() -> None:
            depth.append("in")
            if not threads:  # the first view is being computed: two more choices are made
                threads.append(elsewhere(lambda: (chosen(part.reads, 2), chosen(part.expert, 3)), made))
            update()
            depth.append("out")
            places.append(threading.current_thread())

        chosen(part.expert, 0)
        part.update = slow
        chosen(part.reads, 0)
        await asyncio.gather(*(asyncio.to_thread(thread.join) for thread in threads))
        assert (part.reads.value, part.expert.value) == (1, 3)
        assert "expert 1" in part.said.value and "experts 3" in part.said.value
        assert depth == ["in", "out"] * 3 and set(places) == {threading.current_thread()}

    asyncio.run(kernel())


def test_a_run_that_trains_lets_its_explorers_answer_between_epochs() -> None:
    async def kernel() -> None:
        run = lab.start("dne", tiny.tiny_stream(), **SMALL)
        run.next_task()
        made = lab.explore(run, run.stream.test_images(4), tab="what_if")
        assert isinstance(made, Explorer)
        how: Any = made.parts["what_if"].how  # type: ignore[attr-defined]
        threads: list[threading.Thread] = []
        during: list[str] = []

        def press(trained: Run) -> None:
            if not threads:
                threads.append(elsewhere(lambda: chosen(how, 2), made))
                during.append(how.value)

        run.viewers.insert(0, press)
        run.viewers.append(lambda trained: during.append(how.value))
        run.next_task()
        assert during[:2] == ["mean", "mask"]
        await asyncio.to_thread(threads[0].join)
        made.close()

    asyncio.run(kernel())


def test_who_waits_goes_on_when_the_kernel_has_ended() -> None:
    async def begin() -> Turns:
        return Turns()

    loop = asyncio.new_event_loop()
    turns = loop.run_until_complete(begin())
    thread = threading.Thread(target=lambda: turns.take(lambda: None))
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    loop.close()


def test_without_a_loop_everything_is_done_at_once() -> None:
    done: list[int] = []
    turns = Turns()
    turns.take(lambda: done.append(1))
    thread = threading.Thread(target=lambda: turns.take(lambda: done.append(2)))
    thread.start()
    thread.join()
    assert done == [1, 2]


def test_an_error_in_a_turn_does_not_reach_the_training_that_lets_explorers_catch_up() -> None:
    async def kernel() -> None:
        turns, done, told = Turns(), [], []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["exception"]))
        threads = [
            threading.Thread(target=turns.take, args=(work,)) for work in (lambda: 1 / 0, lambda: done.append(1))
        ]
        for number, thread in enumerate(threads, start=1):
            thread.start()
            while len(turns._waiting) < number:
                thread.join(0.01)
        turns.catch_up()
        for thread in threads:
            thread.join()
        assert done == [1] and [type(error) for error in told] == [ZeroDivisionError]

    asyncio.run(kernel())
