"""Models on the Hugging Face Hub: `push` sends one with its record and a card made from it, `fetch` brings one back.

What comes back was made by somebody: two files are asked for by name, weights as safetensors and a record as JSON, both
are checked like files of one's own, and no code of a repository is loaded or run.
"""

import json
import re
import tempfile
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from dne_lab.commands.hub_process import exchange
from dne_lab.core.errors import LabError, brief

PREFIX = "hf://"
MODEL, RECORD, CARD = "model.safetensors", "record.json", "README.md"
LARGEST = 64_000_000  # bytes of a record that is fetched
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


def fetch(text: str) -> Path:
    """The model of ``hf://user/name``, in the client's own cache: fetched once, then there without a connection.

    Raises:
        LabError: no such name, repository, revision or connection; files that are damaged, that `push` did not write,
            or that do not belong together.
    """
    from dne_lab.measure.record import Record
    from dne_lab.training.archive import most_bytes, read_model

    name, files = named(text), []
    with exchange(name.repository) as hub:
        here = not hub.ask("is_there", revision=name.revision)
        most = LARGEST
        for file in (RECORD, MODEL):
            got = hub.ask("file", most, file=file, revision=name.revision, here=here, most=most)
            files.append(Path(got))
            most = most_bytes(Record.from_json(files[0]))
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

    where = named(name)
    if where.revision is not None:
        raise LabError(f"{brief(name)}: give a name without a revision to push to.")
    with tempfile.TemporaryDirectory(prefix="dne-lab-") as place, exchange(where.repository) as hub:
        folder, files = Path(place), [MODEL, RECORD, CARD]
        export_model(run, folder / MODEL, half)
        record = Record.from_json(run / RECORD)
        record.write(folder / RECORD)
        (folder / CARD).write_text(card(where.repository, record), encoding="utf-8")
        if not force and hub.ask("exists"):
            raise LabError(f"{where.repository} exists. Give another name, or --force to replace its model.")
        hub.ask("create", private=not public)
        size = sum((folder / file).stat().st_size for file in files)
        hub.ask("commit", size, folder=place, files=files, message=f"{record.id} from dne-lab")
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
