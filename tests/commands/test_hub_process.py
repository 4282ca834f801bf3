"""A server that answers as no Hub does: without an end, never, in another kind of JSON. With the real client."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import stand_in_hub

from dne_lab.commands import hub_process
from dne_lab.commands.hub_process import exchange
from dne_lab.core.errors import LabError


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[stand_in_hub.StandIn]:
    """The server, with a cache of the client's own below the test's folder."""
    for name, value in {"HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "x", "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    with stand_in_hub.served() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        found.repositories["a/model"] = {"record.json": b"{}", "model.safetensors": b"x" * 3_000_000}
        yield found


@pytest.mark.parametrize("said", [b"[1, 2]", b"null", b"{}", b"<html>", b"", b"[" * 100_000, b'{"id": 5, "url": 7}'])
def test_json_of_another_kind_is_a_sentence_whatever_is_asked(server: stand_in_hub.StandIn, said: bytes) -> None:
    server.instead = lambda path: (200, {}, said)
    asked: list[Callable[[hub_process.Exchange], object]] = [
        lambda hub: hub.ask("is_there", revision=None),
        lambda hub: hub.ask("create", private=True),
        lambda hub: hub.ask("commit", folder=str(Path(__file__).parent), files=[Path(__file__).name], message="x"),
    ]
    with exchange("a/model") as hub:
        for ask in asked:
            if said == b'{"id": 5, "url": 7}' and ask is asked[0]:
                continue  # enough of an answer
            with pytest.raises(LabError, match=r"^a/model: (what answers there|the Hub cannot be reached, or)"):
                ask(hub)


def test_an_answer_without_an_end_does_not_fill_memory_or_disk(
    server: stand_in_hub.StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_process.Exchange, "seconds", 100.0)
    with exchange("a/model") as hub:
        with pytest.raises(LabError, match=r"^a/model: its model.safetensors is larger than 1,000,000 bytes"):
            hub.ask("file", file="model.safetensors", revision=None, here=False, most=1_000_000)
        assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) <= 1_000_000
        path = hub.ask("file", file="model.safetensors", revision=None, here=False, most=4_000_000)
        assert Path(path).stat().st_size == 3_000_000


def test_a_server_that_is_silent_or_says_come_back_tomorrow_is_not_waited_for(
    server: stand_in_hub.StandIn, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub_process.Exchange, "seconds", 4.0)
    server.instead = lambda path: (429, {"Retry-After": "100000", "X-HF-Warning": "x; \x1b[31mred"}, b"{}")
    start = time.monotonic()
    with exchange("a/model") as hub, pytest.raises(LabError, match=r"a/model: the Hub has not answered within 4 s"):
        hub.ask("file", file="record.json", revision=None, here=False, most=10_000)
    assert time.monotonic() - start < 20
    assert "\x1b" not in "".join(capfd.readouterr())


def test_what_lies_in_the_working_directory_is_not_run(
    server: stand_in_hub.StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "huggingface_hub.py").write_text("raise SystemExit('let in')")
    monkeypatch.chdir(tmp_path)
    with exchange("a/model") as hub:
        assert hub.ask("exists") is True


def test_it_ends_with_who_asked_and_not_by_ctrl_c(server: stand_in_hub.StandIn) -> None:
    asked, over = threading.Event(), threading.Event()

    def never(path: str) -> tuple[int, dict[str, str], bytes]:
        asked.set()
        over.wait(60)
        return 200, {}, b"{}"

    with exchange("a/model") as hub:
        assert hub.ask("exists") is True
        hub._process.send_signal(signal.SIGINT)
        assert hub.ask("exists") is True
        server.instead = never
        assert hub._process.stdin is not None
        hub._process.stdin.write(b'{"do": "create", "name": "a/model", "private": true}\n')
        hub._process.stdin.flush()
        assert asked.wait(20)
        hub._process.stdin.close()  # as when the process that asks is killed
        try:
            assert hub._process.wait(10) == 0
        finally:
            over.set()
