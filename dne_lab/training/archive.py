"""One portable file that stands for a run folder."""

import contextlib
import io
import json
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from dne_lab.errors import LabError
from dne_lab.files import write_bytes, write_text
from dne_lab.measure.record import Record
from dne_lab.training import portable
from dne_lab.training.folder import CONFIG, CURVES, LAST, PREDICTIONS, RECORD, read_config, task_file

MOMENT = (1980, 1, 1, 0, 0, 0)  # a zip wants a time; the same one makes the same bytes


def export(run: str | Path, file: str | Path) -> Path:
    """Packs a run folder into one zip file: configuration, record, curves, predictions, the tasks' states, and the
    checkpoint of a run that is not finished. The same run gives the same bytes.

    Raises:
        LabError: no run folder, nothing in it yet; ``file`` cannot be written.
    """
    folder, file = Path(run), Path(file)
    config = read_config(folder)
    if not (folder / RECORD).exists():
        raise LabError(f"{folder} holds no record yet: train it for a while first (`dne-lab run {config.method} ...`).")
    record = Record.from_json(folder / RECORD)
    names = [CONFIG, RECORD, CURVES, PREDICTIONS]
    names += [task_file(number) for number in range(1, len(record.seen_accuracy) + 1)]
    names += [] if record.finished else [LAST]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise LabError(f"{folder} is incomplete: {', '.join(missing)} missing. Run the same command again first.")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as packed:
        for name in names:
            packed.writestr(zipfile.ZipInfo(name, MOMENT), (folder / name).read_bytes())
    write_bytes(file, buffer.getvalue())
    return file


def unpack(file: Path) -> tempfile.TemporaryDirectory[str]:
    """Unpacks an archive into a folder that lives as long as what is returned.

    Raises:
        LabError: no such file, damaged, or no archive of a run (also when it holds anything but a run's files).
    """
    if not file.exists():
        raise LabError(f"{file} does not exist. Name a run folder, or a file that `dne-lab export` wrote.")
    folder: tempfile.TemporaryDirectory[str] = tempfile.TemporaryDirectory(prefix="dne-lab-")
    try:
        if file.suffix == portable.SUFFIX:
            _, config, record = portable.read_model(file)
            write_text(Path(folder.name) / CONFIG, json.dumps(config.to_dict(), indent=1) + "\n")
            record.write(Path(folder.name) / RECORD)
            return folder
        with zipfile.ZipFile(file) as packed:
            allowed = {CONFIG, RECORD, CURVES, PREDICTIONS, LAST, *(task_file(number) for number in range(1, 1000))}
            strange = [name for name in packed.namelist() if name not in allowed]
            if strange or CONFIG not in packed.namelist():
                what = f"it holds {strange[0]!r}" if strange else f"it has no {CONFIG}"
                raise LabError(f"{file} is no archive of a run, or damaged: {what}.")
            packed.extractall(folder.name)
    except zipfile.BadZipFile as error:
        folder.cleanup()
        raise LabError(f"{file} is no archive of a run, or damaged ({error}). Export the run again.") from error
    except BaseException:
        folder.cleanup()
        raise
    return folder


@contextlib.contextmanager
def unpacked(path: str | Path) -> Iterator[Path]:
    """The run folder itself, or the archive's content in a temporary folder: every command takes either."""
    path = Path(path)
    if path.is_dir():
        yield path
        return
    with unpack(path) as folder:
        yield Path(folder)
