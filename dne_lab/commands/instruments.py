"""What `dne-lab report` does with --attention, --ablation and --probe: measures runs and keeps the records."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dne_lab.analysis.ablation_study import AblationRecord, side_by_side, study, sweep_table
from dne_lab.analysis.decomposition import INITIAL, SHUFFLED, TRAINED, Decomposition, decompose
from dne_lab.analysis.read_outs import ProbeRecord, probe_study, probe_table
from dne_lab.analysis.removal import HOW, QUESTIONS, warning
from dne_lab.commands.api import open as open_run
from dne_lab.core.errors import LabError
from dne_lab.core.files import file_name, inside
from dne_lab.data.datasets import GIVEN
from dne_lab.measure import tables
from dne_lab.measure.measurement import Measurement
from dne_lab.measure.record import RUN_FIRST
from dne_lab.methods.base import title_of
from dne_lab.plots.attention import fragmentation, group_shares
from dne_lab.plots.attention_compared import SAME, along_training
from dne_lab.training import archive, run_data
from dne_lab.training.run import Run
from dne_lab.training.run_folder import CONFIG

if TYPE_CHECKING:
    import pandas as pd


def runs(paths: Iterable[Path], option: str, images: int | None = None) -> list[Path]:
    """Run folders, archives, and what lies in folders that hold run folders, for ``option``, on so many images.

    Raises:
        LabError: none there, or too few images.
    """
    if images is not None and images < 2:
        raise LabError(f"{option} {images}: give at least 2 images, better some hundred.")
    found: list[Path] = []
    for path in paths:
        within = [path]
        if path.is_dir():
            within = sorted(config.parent for config in inside(path, CONFIG))
            within = within or sorted(path.glob(f"*{archive.SUFFIX}"))  # a folder of models
        if not within or path.suffix == ".json":
            raise LabError(
                f"{path} holds no run folder: attention needs a run's weights, not its record alone. {RUN_FIRST}"
            )
        found += within
    return found


def open_with(path: Path, data: str | None) -> Run:
    """The run in a folder or archive, with its images from ``data`` if they have moved or were never in it.

    Raises:
        LabError: its images were given in Python, or are not where it says.
    """
    name = run_data.config_of(path).data.name
    if name in GIVEN:
        raise LabError(
            f"{path} has learned from images that were given in Python ({name}), where a command line finds none. In "
            f"Python: run = dne_lab.open({str(path)!r}, STREAM) with the stream that it was trained with, then "
            "dne_lab.attention_groups(run.model, run.stream.test_images(300)), dne_lab.ablation_sweep of the same "
            "two, or dne_lab.linear_probe(run.model, run.stream)."
        )
    if data is not None:
        return open_run(path, run_data.stream_at(path, data), progress=False)
    if path.suffix != archive.SUFFIX:
        return open_run(path, progress=False)
    # says what is missing and where, which a model that is opened to be looked at does not need
    config = archive.read_model(path).config
    if config.data.path is None and config.data.name in ("folder", "npz"):
        raise LabError(f"{path} does not say where its images are: add --data and the {config.data.name}.")
    return open_run(path, run_data.stream_of_run(config, path), progress=False)


M = TypeVar("M", bound=Measurement)


def _measure(
    folders: Iterable[Path], data: str | None, out: Path, of: Callable[[Run], list[M]]
) -> tuple[list[M], list[Path]]:
    """What an instrument finds of every run, one after another; each is written to ``out``/NAME.json at
    once."""
    made, written = [], []
    for folder in folders:
        for found in of(open_with(folder, data)):
            written.append(out / f"{file_name(found.name)}.json")
            found.write(written[-1])
            made.append(found)
    return made, written


def decompose_runs(
    paths: Iterable[Path], images: int, out: Path, data: str | None = None
) -> tuple[list[Decomposition], list[Path]]:
    """Decomposes every run, one after another, and writes its record, ``out``/records/attention/ID.json.

    Returns:
        What was found, and the files written.
    """
    folders = runs(paths, "--attention", images)
    return _measure(folders, data, out / "records" / "attention", lambda run: [decompose(run, images)])


def attention_overview(found: Iterable[Decomposition]) -> "pd.DataFrame":
    """One row per run and moment: same-patch share of experts 2, 3, ... with its interval over images, the keys used.

    A moment at which these experts have no attention to patches (the null model of DNE) has no row.
    """
    import pandas as pd

    rows = []
    for member in found:
        for moment in (name for name in (INITIAL, TRAINED, SHUFFLED) if name in member.moments):
            same = member.same_patch(moment)
            if not math.isfinite(same.value):
                continue
            groups, whole = member.patches(moment), member.patches(moment, name="rows").iloc[0]
            rows.append(
                {"run": member.run, "images": member.images, "moment": moment, "same patch %": same.value}
                | {"low": same.low, "high": same.high}
                | {"uniform %": float(groups[groups["group"].isin(SAME)]["uniform %"].sum())}
                | {"effective keys": float(whole["effective keys"]), "keys": float(whole["keys"])}
            )
    return pd.DataFrame(rows)


def summary(found: Iterable[Decomposition]) -> "pd.DataFrame":
    """One row per method and preset, the paper's first: same-patch share with its interval (over seeds, or over images
    of one seed), its uniform value, what it was untrained and is under the null model, and keys in effective use."""
    import pandas as pd

    found = list(found)
    shares, moments, layers = (make(found).table for make in (group_shares, along_training, fragmentation))
    same = shares[shares["group"] == "same patch"]
    at = moments.pivot_table("same patch %", "series", "moment").reindex(columns=[INITIAL, SHUFFLED])
    used = layers.groupby("series")[["effective keys", "keys"]].mean()
    frame = pd.DataFrame(
        {
            "attention of": same["series"],
            "seeds": same["seeds"],
            "same patch %": same["share %"],
            "low": same["low"],
            "high": same["high"],
            "uniform %": same["uniform %"],
            "untrained %": [at[INITIAL].get(name) for name in same["series"]],
            "shuffled %": [at[SHUFFLED].get(name) for name in same["series"]],
            "effective keys": [used["effective keys"].get(name) for name in same["series"]],
            "keys": [used["keys"].get(name) for name in same["series"]],
        }
    )
    floats = [name for name in frame if name not in ("attention of", "seeds")]
    return frame.astype(dict.fromkeys(floats, float)).reset_index(drop=True)


def attention_text(found: Iterable[Decomposition]) -> str:
    """`attention_overview` for the terminal."""
    table = attention_overview(found)
    if table.empty:
        return "These runs have one expert each: there is no attention of later experts to sort."
    return f"Attention of experts 2, 3, ... to patches\n{tables.to_text(table)}"


# What `dne-lab report --ablation` does: ablate runs and keep the records.


def ablate_runs(
    paths: Iterable[Path], images: int, out: Path, how: str | Sequence[str] = HOW, data: str | None = None
) -> tuple[list[AblationRecord], list[Path]]:
    """Ablates every run, one after another, and writes its records, ``out``/records/ablation/ID-HOW.json for each of
    ``how``.

    Returns:
        What was found, and the files written.
    """
    folders = runs(paths, "--ablation", images)
    return _measure(
        folders,
        data,
        out / "records" / "ablation",
        lambda run: study(run, images, how),
    )


def ablation_overview(found: Iterable[AblationRecord]) -> "pd.DataFrame":
    """One row for each removal from all later experts at once: where, what, ``mass %`` (how much of the rows' attention
    that is), and what is lost in each way of removing it, side by side.

    ``+-`` is half the width of the 95% interval over seeds; of one seed, over images.
    """
    whole = side_by_side(found)
    whole = whole[whole["experts"] == "later"]
    ways = [name for how in HOW for name in (how, f"{how} +-") if how in whole]
    whole = whole.assign(method=whole["method"].map(title_of))
    return whole[["preset", "method", "kind", "removed", "seeds", "mass %", "before %", *ways]]


def ablation_text(found: Iterable[AblationRecord]) -> str:
    """For the terminal: what each group of the later experts' attention is worth, and each connection (all layers)."""
    found = list(found)
    hows = [how for how in HOW if any(record.how == how for record in found)]
    lines = ["Accuracy lost (points) when attention of experts 2, 3, ... is removed"]
    lines.append("  mass %: of the attention of the rows from which it is removed")
    lines += [f"  {how}: {QUESTIONS[how]}" for how in hows]
    lines.append(tables.to_text(ablation_overview(found)))
    kinds = {kind for record in found for row in record.groups for kind in row["kind"].split(" + ")}
    lines += [f"Beware: {note}\n" for how in hows if (note := warning(how, kinds))]
    swept = sweep_table(found) if any(record.sweep for record in found) else None
    if swept is not None:
        for (preset, method, how), rows in swept.groupby(["preset", "method", "how"], sort=False):
            last = rows[(rows["kind"] == rows["kind"].iloc[-1]) & (rows["layer"] == rows["layer"].iloc[-1])]
            matrix = last.pivot_table("loss", "expert", "reads", sort=False).round(2)
            lines += [
                f"{title_of(str(method))}, {preset}: lost when expert (row) reads expert (column) at no layer ({how})",
                str(matrix),
            ]
    return "\n".join(lines)


# What `dne-lab report --probe` does: probe the read-outs of runs and keep the records.


def probe_runs(paths: Iterable[Path], out: Path, data: str | None = None) -> tuple[list[ProbeRecord], list[Path]]:
    """Probes every run, one after another, and writes its record, ``out``/records/probe/ID.json.

    Returns:
        What was found, and the files written.
    """
    return _measure(runs(paths, "--probe"), data, out / "records" / "probe", lambda run: [probe_study(run)])


def probe_overview(found: Iterable[ProbeRecord]) -> "pd.DataFrame":
    """One row per method and set of read-outs: accuracy over all classes, and within the task when the task is told.

    ``+-`` is half the width of the 95% interval over seeds; of one seed, over images.
    """
    table = probe_table(found)
    columns = ["preset", "method", "heads", "read-outs", "seeds", "width"]
    columns += ["accuracy %", "accuracy +-", "told %", "told +-"]
    return table.assign(method=table["method"].map(title_of))[columns]


def probe_text(found: Iterable[ProbeRecord]) -> str:
    """`probe_overview` for the terminal, and what it is."""
    text = "Linear probes of frozen read-outs, trained with all training images of every class\n"
    text += "  told: accuracy within the task when the task is told\n"
    return text + tables.to_text(probe_overview(found))
