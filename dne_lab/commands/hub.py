"""Models on the Hugging Face Hub: `push` sends one with its record and a card made from it, `fetch` brings one back.

What comes back was made by somebody: two files are asked for by name, weights as safetensors and a record as JSON, both
are checked like files of one's own, and no code of a repository is loaded or run.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from dne_lab.core.errors import LabError, brief

PREFIX = "hf://"
MODEL, RECORD, CARD = "model.safetensors", "record.json", "README.md"
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_NAME = re.compile(rf"({_PART})/({_PART})(?:@([A-Za-z0-9][A-Za-z0-9._-]{{0,99}}))?")


class Name(NamedTuple):
    """A repository, and a branch, tag or commit of it (None: the newest)."""

    repository: str
    revision: str | None


def named(text: str) -> Name:
    """``user/name`` or ``user/name@revision``, with or without ``hf://``; a `LabError` for anything else."""
    found = _NAME.fullmatch(text.removeprefix(PREFIX))
    if found is None or ".." in text or "--" in text:
        raise LabError(
            f"{brief(text)} is no name on the Hub: write user/name, or {PREFIX}user/name@revision to open it."
        )
    return Name(f"{found[1]}/{found[2]}", found[3])


def _client() -> Any:
    """The library, or a `LabError` that says how to get it."""
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ModuleNotFoundError as error:
        raise LabError("huggingface_hub is not installed here: pip install 'dne-lab[hub]'.") from error
    return huggingface_hub


def _place() -> str | None:
    """The server, where ``HF_ENDPOINT`` names another one than the Hub."""
    return os.environ.get("HF_ENDPOINT") or None


@contextmanager
def _in_words(name: str) -> Iterator[None]:
    """What the client raises, as a `LabError`."""
    errors = _client().errors
    try:
        yield
    except LabError:
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
        raise LabError(f"{name} is no model that `dne-lab push` wrote: it lacks {MODEL} or {RECORD}.") from error
    except (errors.OfflineModeIsEnabled, errors.LocalTokenNotFoundError) as error:
        raise LabError(f"{name}: {_first_line(error)} (HF_HUB_OFFLINE, hf auth login)") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        advice = " Log in with a token that may write: hf auth login." if status in (401, 403) else ""
        raise LabError(f"{name}: the Hub refused ({status or _first_line(error)}).{advice}") from error
    except Exception as error:  # of the transport below the client, which has changed its library before
        if not isinstance(error, OSError | ValueError) and not type(error).__module__.startswith(
            ("httpx", "httpcore", "requests")
        ):
            raise
        raise LabError(
            f"{name}: the Hub cannot be reached, or does not answer as it should ({_first_line(error)})."
        ) from error


def _below(error: Exception) -> bool:
    """Whether an error is of the transport below the client: there is no connection."""
    return isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "httpcore", "requests"))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def fetch(text: str) -> Path:
    """The model of ``hf://user/name``, in the client's own cache: fetched once, then there without a connection.

    Raises:
        LabError: no such name, repository, revision or connection; files that are damaged, that `push` did not write,
            or that do not belong together.
    """
    from dne_lab.measure.record import Record
    from dne_lab.training.archive import read_model

    name, client, files = named(text), _client(), []
    with _in_words(name.repository):
        here = False
        try:  # asked once: without a connection the client would wait half a minute for each file
            client.HfApi(endpoint=_place()).model_info(name.repository, revision=name.revision)
        except Exception as error:
            offline = isinstance(error, client.errors.OfflineModeIsEnabled)
            if isinstance(error, client.errors.HfHubHTTPError) or not (offline or _below(error)):
                raise
            here = True
        for file in (RECORD, MODEL):
            how = {"revision": name.revision, "endpoint": _place(), "local_files_only": here}
            files.append(Path(client.hf_hub_download(name.repository, file, **how)))
    record, model = Record.from_json(files[0]), read_model(files[1])
    if record.to_dict() != model.record.to_dict():
        raise LabError(f"{name.repository}: {RECORD} is not that of {MODEL}. Ask whoever pushed them.")
    return files[1]


def card(name: str, record: Any) -> str:
    """The page of a model, made from its record: Markdown under what the Hub reads as YAML."""
    from dne_lab.measure import tables
    from dne_lab.measure.comparison import memory_of, tasks_text, title

    metrics = [{"type": "accuracy", "name": n, "value": round(getattr(record, n), 2)} for n in ("LA", "AA")]
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"type": record.dataset, "name": f"{record.dataset}, {tasks_text(record.tasks)} classes"},
        "metrics": metrics,
    }
    head = {
        "library_name": "dne-lab",
        "tags": ["class-incremental-learning", "continual-learning", "image-classification", "safetensors"],
        "model-index": [{"name": name, "results": [result]}],
    }
    rows = {
        "method": title(record),
        "data": f"{record.dataset}, tasks of {tasks_text(record.tasks)} classes",
        "memory": memory_of(record) if record.memory.get("budget") else "none",
        "preset, seed": f"{record.preset or 'none'}, {record.seed}",
        "parameters": f"{record.params['total']:,}" if record.params.get("total") else "",
        "F of an image, GFLOPs (2 x MAC)": "" if record.flops_spent is None else f"{record.flops_spent / 1e9:.4f}",
        "made with": ", ".join(
            filter(None, [f"PyTorch {record.torch}", record.python and f"Python {record.python}", record.device])
        ),
        "code": record.code_version,
        "configuration": record.config_sha256,
        "command": record.timing.get("command", ""),
    }
    table = "".join(f"| {key} | {_cell(value)} |\n" for key, value in rows.items() if value)
    front = "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in head.items())  # JSON is YAML
    return f"""---
{front}---

# {name}

{title(record)} after {len(record.tasks)} tasks: {record.LA:.2f}% over all classes after the last task (LA),
{record.AA:.2f}% as a mean after each task (AA).

| | |
| --- | --- |
{table}
## Accuracy

{tables.to_markdown(record.table())}
After each task: over all classes seen, and on the test images of each task, in percent.

## Opening it

```python
import dne_lab as lab

run = lab.open("{PREFIX}{name}")
run.model(run.stream.test_images(8).images)
```

`{MODEL}` holds the weights, and in its header the configuration; `{RECORD}` is what the numbers above rest on.
No code of this repository is run.
"""


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def send(run: Path, name: str, public: bool = False, force: bool = False, half: bool = False) -> str:
    """Sends the finished model of a run folder, its record and its card in one commit; the page's address.

    Raises:
        LabError: what `archive.export_model` raises; no such name; a repository that exists, unless ``force`` replaces
            the three files in it; no connection, no right to write.
    """
    from dne_lab.measure.record import Record
    from dne_lab.training.archive import export_model

    where, client = named(name), _client()
    if where.revision is not None:
        raise LabError(f"{brief(name)}: give a name without a revision to push to.")
    with tempfile.TemporaryDirectory(prefix="dne-lab-") as place:
        folder = Path(place)
        export_model(run, folder / MODEL, half)
        record = Record.from_json(run / RECORD)
        record.write(folder / RECORD)
        (folder / CARD).write_text(card(where.repository, record), encoding="utf-8")
        api = client.HfApi(endpoint=_place())
        with _in_words(where.repository):
            if not force and api.repo_exists(where.repository):
                raise LabError(f"{where.repository} exists. Give another name, or --force to replace its model.")
            api.create_repo(where.repository, private=not public, exist_ok=True)
            files = [client.CommitOperationAdd(file, folder / file) for file in (MODEL, RECORD, CARD)]
            api.create_commit(where.repository, files, commit_message=f"{record.id} from dne-lab")
    return f"{PREFIX}{where.repository}"


def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    name: Annotated[str, typer.Argument(metavar="USER/NAME", help="A repository of models on the Hub.")],
    public: Annotated[bool, typer.Option("--public", help="Make the repository public; else it is private.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the model in a repository that exists.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Keep weights as float16.")] = False,
) -> None:
    """Send a finished model, its record and a page about it to the Hugging Face Hub.

    Log in first: hf auth login. Then in Python: lab.open("hf://user/name").
    """
    place = send(run, name, public, force, half)
    print(f"wrote {place}. Next, in Python: lab.open({place!r})")
