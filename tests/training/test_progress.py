"""What is seen of a run: its bar; signals that stop it wait for a safe moment, and say which one it was."""

import os
import signal

import pytest

from dne_lab.training.progress import Signals, Terminated, _bar

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs POSIX signals")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP])
def test_a_signal_waits_for_the_check(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Terminated) as caught, Signals() as signals:
        os.kill(os.getpid(), number)
        assert signals.received == number
        signals.check()
    assert caught.value.status == 128 + number and signal.getsignal(number) == before


def test_what_the_users_program_does_with_a_signal_stays() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup starts a program
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received is None
    finally:
        signal.signal(signal.SIGUSR1, before)
        signal.signal(signal.SIGHUP, ignored)
    assert seen == [signal.SIGUSR1]


def test_a_bar_with_its_result_fits_a_line_of_a_terminal() -> None:
    bar = _bar("dne s0 task 1/4 accuracy 98.1%", total=480, done=0, leave=False)
    bar.dynamic_ncols, bar.ncols = None, 80
    bar.set_postfix({"loss": "0.013"}, refresh=False)
    bar.update(480)
    text = str(bar)
    bar.close()
    assert len(text) <= 80 and "loss=0.013]" in text and 5 * "█" in text
