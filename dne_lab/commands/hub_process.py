"""The Hub's client in a process of its own, whose memory, files and time are limited.

So whatever a server answers, and whatever library the client has below: an answer without an end, one that drips, or
"come back tomorrow" is a sentence.

Requests and answers are lines of JSON. What comes back is a path or a yes; content is read by who asked, as any file.
"""

import contextlib
import errno
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dne_lab.core.errors import LabError, brief, reason, visible

ASKED, CONNECTED = 60.0, 20.0  # seconds that a question may take, and that a connection may be silent
SLOWEST = 20_000  # bytes a second, below which a file is not waited for
MEMORY = 2 * 10**9, 3 * 10**9  # bytes: while something is asked, and while a model is carried


class Exchange:
    """The other process, while it runs.

    Attributes: ``seconds``: how long `ask` waits, beside what ``size`` bytes take.
    """

    seconds = ASKED

    def __init__(self, name: str, process: "subprocess.Popen[bytes]") -> None:
        self.name, self._process = name, process
        self._answers: queue.Queue[bytes] = queue.Queue()
        assert process.stdout is not None and process.stderr is not None
        for read in (self._listen, self._pass_on):
            threading.Thread(target=read, daemon=True).start()

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            self._answers.put(line)
        self._answers.put(b"")  # the process has ended

    def _pass_on(self) -> None:
        for line in self._process.stderr or ():  # of the client, which repeats words of the server
            print(visible(line.decode("utf-8", "replace").rstrip("\r\n")), file=sys.stderr)

    def ask(self, what: str, size: int = 0, **given: Any) -> Any:
        """What an action of `ACTIONS` gives; ``size``: bytes that it may carry.

        Raises:
            LabError: what it raises; no answer in time.
        """
        request = json.dumps({"do": what, "name": self.name, **given}).encode() + b"\n"
        seconds = self.seconds + size / SLOWEST
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(request)
            self._process.stdin.flush()
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            raise LabError(
                f"{self.name}: the Hub has not answered within {seconds:.0f} s, or asks to wait. Try again later."
            ) from None
        except OSError:  # it cannot be told anything more
            line = b""
        if not line:
            raise LabError(
                f"{self.name}: the process that asks the Hub has ended without an answer (its words, if any, are "
                "above). Its memory is limited, for an answer without an end."
            )
        answer = json.loads(line)
        if "error" in answer:
            raise LabError(answer["error"])
        return answer["is"]


@contextmanager
def exchange(name: str) -> Iterator[Exchange]:
    """Inside, the process can be asked about the repository ``name``; it is ended behind.

    Raises:
        LabError: the client is not installed.
    """
    from importlib.util import find_spec

    if find_spec("huggingface_hub") is None:
        raise LabError("huggingface_hub is not installed here: pip install 'dne-lab[hub]'.")
    here = str(Path(__file__).parents[2])
    # Ctrl-C is the parent's, which ends this process.
    start = "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    start += f"; sys.path.append({here!r}); from {__name__} import answer_all; answer_all()"
    # Telemetry: for it the client keeps a list of the server's for a day, and fails with each request if it is none.
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONIOENCODING": "utf-8"}
    # -P: a file of the working directory is not imported in place of a library
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", start],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | quiet,
    )  # fmt: skip
    try:
        yield Exchange(name, process)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()


# The other side -------------------------------------------------------------------------------------------------------


def answer_all() -> None:
    """Answers what comes on standard input, a line each, until it ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    lines: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)  # who asked is gone, however that came; the client may be waiting without an end

    threading.Thread(target=listen, daemon=True).start()
    while True:
        line = lines.get()
        asked = json.loads(line)
        try:
            told: dict[str, Any] = {"is": ACTIONS[asked.pop("do")](**asked)}
        except LabError as error:
            told = {"error": str(error)}
        except MemoryError:
            told = {"error": f"{asked['name']}: the Hub's answer does not fit into memory: no answer of the Hub."}
        print(json.dumps(told), file=answers, flush=True)


def _limit(memory: int, file: int | None = None) -> None:
    """Limits this process, as far as the system can: bytes of its memory, and of a file that it writes."""
    try:
        import resource
    except ImportError:  # no POSIX
        return
    for kind, wanted in ((resource.RLIMIT_DATA, memory), (resource.RLIMIT_FSIZE, file)):
        hard = resource.getrlimit(kind)[1]
        most = hard if wanted is None else wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (most, hard))


def _api() -> Any:
    import huggingface_hub

    # the server, where HF_ENDPOINT names another one than the Hub
    return huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)


def _is_there(name: str, revision: str | None) -> bool:
    """Whether the server knows the repository; False: it cannot be reached, so that only a copy can be had."""
    _limit(MEMORY[0])
    with _in_words(name):
        errors = _errors()
        try:  # asked once: without a connection the client would wait half a minute for each file
            _api().model_info(name, revision=revision, timeout=CONNECTED)
        except Exception as error:
            offline = isinstance(error, errors.OfflineModeIsEnabled)
            if isinstance(error, errors.HfHubHTTPError) or not (offline or _below(error)):
                raise
            return False
    return True


def _file(name: str, file: str, revision: str | None, here: bool, most: int) -> str:
    """Where a file of the repository lies in the client's cache, after fetching it if ``here`` is False."""
    import huggingface_hub

    _limit(MEMORY[1], most)
    with _in_words(name):
        try:
            where = os.environ.get("HF_ENDPOINT") or None
            how: dict[str, Any] = {"revision": revision, "endpoint": where, "local_files_only": here}
            return str(huggingface_hub.hf_hub_download(name, file, **how))
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            raise LabError(f"{name}: its {file} is larger than {most:,} bytes, and is not fetched.") from error
        finally:
            _limit(MEMORY[1])


def _exists(name: str) -> bool:
    _limit(MEMORY[0])
    with _in_words(name):
        return bool(_api().repo_exists(name))


def _create(name: str, private: bool) -> bool:
    _limit(MEMORY[0])
    with _in_words(name):
        _api().create_repo(name, private=private, exist_ok=True)
    return True


def _commit(name: str, folder: str, files: list[str], message: str) -> bool:
    import huggingface_hub

    _limit(MEMORY[1])
    with _in_words(name):
        added = [huggingface_hub.CommitOperationAdd(file, Path(folder) / file) for file in files]
        _api().create_commit(name, added, commit_message=message)
    return True


ACTIONS: dict[str, Callable[..., Any]] = {
    "is_there": _is_there, "file": _file, "exists": _exists, "create": _create, "commit": _commit,
}  # fmt: skip


def _errors() -> Any:
    import huggingface_hub.errors

    return huggingface_hub.errors


@contextmanager
def _in_words(name: str) -> Iterator[None]:
    """What the client raises, as a `LabError`."""
    errors = _errors()
    try:
        yield
    except (LabError, MemoryError):
        raise
    except errors.GatedRepoError as error:
        raise LabError(f"{name} asks for its authors' consent: ask on its page, then hf auth login here.") from error
    except errors.RevisionNotFoundError as error:
        raise LabError(f"{name} has no such branch, tag or commit.") from error
    except errors.RepositoryNotFoundError as error:
        raise LabError(f"{name} does not exist on the Hub, or is private: then hf auth login first.") from error
    except errors.LocalEntryNotFoundError as error:
        why = "the Hub cannot be reached from here, and no copy of it was fetched before"
        raise LabError(f"{name}: {why}. Go on when there is a connection.") from error
    except errors.EntryNotFoundError as error:
        raise LabError(f"{name} is no model that `dne-lab push` wrote: it lacks a file.") from error
    except (errors.OfflineModeIsEnabled, errors.LocalTokenNotFoundError) as error:
        raise LabError(f"{name}: {reason(error)} (HF_HUB_OFFLINE, hf auth login)") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        advice = " Log in with a token that may write: hf auth login." if status in (401, 403) else ""
        raise LabError(f"{name}: the Hub refused ({status or reason(error)}).{advice}") from error
    except Exception as error:
        if _below(error):
            raise LabError(
                f"{name}: the Hub cannot be reached, or does not answer as it should ({reason(error)})."
            ) from error
        # of the client, in the middle of an answer that it takes for granted: JSON of another kind, or too deep
        raise LabError(
            f"{name}: what answers there does not answer as the Hub does ({type(error).__name__}: "
            f"{brief(reason(error))}). See HF_ENDPOINT."
        ) from error


def _below(error: Exception) -> bool:
    """Whether an error is of the transport below the client, which has changed its library before: no connection."""
    return isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "httpcore", "requests"))
