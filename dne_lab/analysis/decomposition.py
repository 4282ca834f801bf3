"""The attention of one run sorted into groups at every moment of its training, as a record beside its own."""

from collections import Counter
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from dne_lab.analysis.attention_groups import ACROSS, attention_groups
from dne_lab.analysis.group_tables import LATER, PATCHES, AttentionGroups, Estimate, frame_of, plain
from dne_lab.analysis.hosts import CONTENT, POSITION, find_host
from dne_lab.analysis.labelling import GROUPS
from dne_lab.core.errors import LabError, brief
from dne_lab.core.schema import Like, document
from dne_lab.measure.measurement import Measurement, options_of
from dne_lab.measure.record import Classes, Name, Number, Percent, Section, Seed, Simple, Some, Whole
from dne_lab.methods import base
from dne_lab.models.attention import TASK1, TASK2
from dne_lab.models.expandable import ExpandableViT
from dne_lab.models.expert import TaskAttentionParameters
from dne_lab.training.position import Cursor
from dne_lab.training.run import Run

if TYPE_CHECKING:
    import pandas as pd


# A run's network at moments that left no file: untrained, or with its newest expert at its start.


def untrained(run: Run, tasks: int | None = None) -> ExpandableViT:
    """The network of ``tasks`` tasks (default: all) with every expert at its start, as the run's seed draws it.

    Raises:
        LabError: a method without experts.
    """
    count = len(run.stream) if tasks is None else tasks
    method = base.create(run.config, run.stream)
    run.state.replay(method, Cursor(count + 1), begun=False)
    network = getattr(method, "model", None)
    if not isinstance(network, ExpandableViT):
        raise LabError(
            f"the network of method {run.config.method} has no experts whose attention could be sorted into groups. "
            "Take a run of ia, sta, dne, progressive or another method built on ExpandableViT."
        )
    return network.to(run.device).eval()


def before_learning(run: Run, task: int) -> ExpandableViT:
    """The network before task ``task`` (2, 3, ...) is learned: earlier experts as trained, its own at its start.

    Raises:
        LabError: a task that does not exist, or whose predecessors are not finished.
    """
    if not 2 <= task <= len(run.stream) or task > run.cursor.task:
        done = min(run.cursor.task, len(run.stream))
        raise LabError(f"task {task}: there are networks before tasks 2 to {done}. Train it further for later ones.")
    network = untrained(run, task)
    with torch.no_grad():
        for number, expert in enumerate(list(network.experts)[:-1]):
            expert.load_state_dict(run.model.experts[number].state_dict())
    return network


INITIAL, TRAINED, SHUFFLED = "initialisation", "trained", "shuffled"
BRIEF = ("table", "rows", "table_by_expert")


TEXTS = ("kind", "scope", "group")  # columns of words; all others hold numbers
PLACES = ("layer", "expert", "head")  # columns of whole numbers


class Table(BaseModel):
    """A table as its column names and its rows."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    columns: list[Name] = []
    rows: list[list[str | Number | None]] = []

    @model_validator(mode="after")
    def _fits(self) -> "Table":
        if len({*self.columns}) != len(self.columns):
            raise ValueError("has two columns of one name")
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"has a row of {len(row)} cells under {len(self.columns)} columns")
            for name, cell in zip(self.columns, row, strict=True):
                whole = isinstance(cell, int | float) and float(cell).is_integer()
                if isinstance(cell, str) != (name in TEXTS) or (name in PLACES and not whole):
                    raise ValueError(f"has {brief(cell)} in column {name!r}")
        return self

    def check(self, name: str, *columns: str) -> None:
        """Raises a `ValueError` where it lacks one of these columns, or a group beside the others of its rows."""
        if lacking := [column for column in (*columns, *name.split("_by_")[1:]) if column not in self.columns]:
            raise ValueError(f"has no column {lacking[0]!r} in {name}")
        if "group" in columns:
            cells = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
            where = [tuple(cell.get(key) for key in ("kind", "scope", *PLACES)) for cell in cells]
            found = Counter((place, cell["group"]) for place, cell in zip(where, cells, strict=True))
            if found != Counter((place, group) for place in set(where) for group in GROUPS):
                raise ValueError(f"has other groups in {name} than {', '.join(GROUPS)}, each once")


SHARES = (
    *("kind", "scope", "group", "share %", "share low", "share high", "uniform %", "keys", "uniform mass %"),
    *(f"{value}{end}" for value in ("effective keys", "mass per connection") for end in (" low", " high")),
    *("effective keys", "mass per connection %"),
)
ROWS = (
    *("kind", "scope", "entropy", "entropy low", "entropy high", "uniform entropy"),
    *("effective keys", "effective keys low", "effective keys high", "keys", "largest %", "uniform largest %"),
)

Interval = Annotated[list[Number | None], Field(min_length=3, max_length=3)]  # a value, its low and its high end


class Moment(Section):
    """The groups at one moment; what is not named here is a table."""

    labelling: Name
    part: Name | None = None
    shuffled: bool = False
    images: Some
    replicates: Whole = 0
    same_patch: dict[str, Interval] = Field(default_factory=dict)
    __pydantic_extra__: dict[str, Table]

    @model_validator(mode="after")
    def _whole(self) -> "Moment":
        tables = self.__pydantic_extra__ or {}
        if "table" not in tables:
            raise ValueError("has no table")
        for name, table in tables.items():
            if name.startswith(("table", "rows")):
                table.check(name, *(SHARES if name.startswith("table") else ROWS))
        return self


Rows = list[dict[str, bool | Number | Name | list[Number | None] | None]]


@document
class Decomposition(Measurement):
    """The record of a run's attention: what `decompose` found; shares in percent.

    ``run`` is the id of the run's record, ``LA`` its accuracy. ``moments`` holds tables (see `AttentionGroups.to_dict`)
    by moment: "initialisation" (all experts untrained), "trained" (every expert
    as its task left it: experts are frozen, so the state after task t is its first t experts), "shuffled" (the null
    model), and under gpsa "initialisation, content", ", position" and the same of "trained". ``before`` has the
    groups of each expert before it learned, on its trained predecessors. ``flow`` says who reads whom. ``scale`` has
    the rows of `lambdas`; records made before it was kept have none. ``options``: see `measurement.options_of`.
    """

    ADVICE: ClassVar[str] = "Make it again: dne-lab report RUN --attention N."

    run: Name
    method: Name
    preset: Name
    dataset: Name
    seed: Seed
    epochs: Whole
    tasks: list[Classes]
    heads: list[Classes]
    network: Simple
    LA: Annotated[float, Like(Percent)] | None
    finished: bool
    images: Some
    config_sha256: Name
    code_version: Name
    torch: Name
    moments: Annotated[dict[str, dict[str, Any]], Like(dict[str, Moment])]
    before: Annotated[dict[str, list[Any]], Like(Table)] = field(default_factory=dict)
    flow: Annotated[dict[str, list[Any]], Like(Table)] = field(default_factory=dict)
    scale: Annotated[list[dict[str, Any]], Like(Rows)] = field(default_factory=list)
    images_sha256: Name = ""
    options: Simple = field(default_factory=dict)
    kind: str = "attention"
    format: int = 1

    def __post_init__(self) -> None:
        experts = range(1, len(self.heads) + 1)
        if len(experts) > 1:
            for moment in (INITIAL, TRAINED):
                if moment in self.moments and self.patches(moment).empty:
                    raise LabError(f"moments.{moment} has no attention of later experts to patches.")
        try:
            if self.before:
                Table(**self.before).check("before", *SHARES, "expert")
            if self.flow:
                Table(**self.flow).check("flow", "kind", *PLACES[:2], *(f"expert {number}" for number in experts))
                flow = frame_of(self.flow)
                if flow.empty or not flow["expert"].isin(experts).all():
                    raise ValueError(f"has rows in flow of other experts than 1 to {len(experts)}")
        except ValueError as error:
            raise LabError(f"attention record of {self.run} {error}.") from None

    def table(self, moment: str = TRAINED, name: str = "table") -> "pd.DataFrame":
        """One table of a moment; `LabError` if the record has none such."""
        if moment not in self.moments or name not in self.moments[moment]:
            there = ", ".join(self.moments)
            raise LabError(f"attention record of {self.run} has no {name} of {moment!r}. It has: {there}.")
        return frame_of(self.moments[moment][name])

    def same_patch(self, moment: str = TRAINED, scope: str = LATER) -> Estimate:
        """The share of attention on the query's own patch, percent, with its interval over images."""
        found = self.moments.get(moment, {}).get("same_patch", {}).get(scope)
        if found is None:
            raise LabError(f"attention record of {self.run} has no same-patch share of {scope}, {moment}.")
        return Estimate(*(float("nan") if value is None else value for value in found))

    def patches(self, moment: str = TRAINED, scope: str = LATER, name: str = "table") -> "pd.DataFrame":
        """The rows of a table about attention to patches; none where a network has one expert and later ones are asked
        for."""
        table = self.table(moment, name)
        return table[table["kind"].isin(PATCHES) & (table["scope"] == scope)].reset_index(drop=True)


def decompose(run: Run, images: int, batch_size: int = 64, progress: bool = True) -> Decomposition:
    """Sorts the attention of a run into groups: untrained, trained, under the null model, before each task, who reads.

    Args:
        run: finished or not; of an unfinished one the tasks that are finished, of one without any the start alone.
        images: test images, spread evenly over the classes.
        batch_size: images at a time.

    Raises:
        LabError: a method without experts, data that are not there.
    """
    import pandas as pd

    start = untrained(run)
    batch = run.stream.test_images(images)

    def groups(network: ExpandableViT, **choice: Any) -> AttentionGroups:
        return attention_groups(network, batch, batch_size=batch_size, progress=progress, **choice)

    done = run.cursor.task - 1
    moments = {INITIAL: _brief(groups(start))}
    gated = run.config.network.spatial == "gpsa"
    networks = {INITIAL: start} | ({TRAINED: run.model} if done else {})
    if gated:
        # after the last block of a cls_token read-out there is no gate, and no part to read
        blocks = start.experts[0].blocks
        layers = [layer for layer, block in enumerate(blocks) if block.attention.gate is not None]
        for moment, network in networks.items():
            for part in (CONTENT, POSITION):
                moments[f"{moment}, {part}"] = _brief(groups(network, kind=_patches(network), layer=layers, part=part))
    before, flow = [], {}
    if done:
        moments[TRAINED] = groups(run.model).to_dict()
        across = any(entry[0] in ACROSS for entry in find_host(run.model).entries)
        if across:
            moments[SHUFFLED] = _brief(groups(run.model, shuffled=True))
            flow = plain(groups(run.model, labelling="experts", replicates=0).flow())
        for task in range(2, done + 1):
            before.append(groups(before_learning(run, task), expert=task).whole_table("expert"))
    record = run.record
    return Decomposition(
        run=record.id, method=record.method, preset=record.preset, dataset=record.dataset, seed=record.seed,
        epochs=record.epochs, tasks=record.tasks, heads=list(start.heads), network=record.network, LA=record.LA,
        finished=record.finished, images=len(batch.index), config_sha256=record.config_sha256,
        images_sha256=record.images_sha256, code_version=record.code_version, torch=record.torch, moments=moments,
        before=plain(pd.concat(before)) if before else {}, flow=flow, scale=lambdas(run.model) if done else [],
        options=options_of(record),
    )  # fmt: skip


def lambdas(network: ExpandableViT) -> list[dict[str, Any]]:
    """How far the factors of task attention have moved from their start, H: a row per block, read from the weights.

    Returns:
        Rows of ``kind`` (task1, task2), ``layer``, ``expert``, ``heads`` H that it reads, and ``lambda / H``, the mean
        over the expert's query heads, with the smallest (``low``) and largest (``high``); none without task attention.
    """
    rows = []
    for number, expert in enumerate(network.experts, start=1):
        for layer, block in enumerate(expert.blocks):
            for kind, mixing in ((TASK1, block.mix1), (TASK2, block.mix2)):
                if isinstance(mixing, TaskAttentionParameters):
                    heads = len(mixing.w_v)
                    moved = (mixing.scale.detach().double() / heads).cpu()
                    values = {"": moved.mean(), " low": moved.min(), " high": moved.max()}
                    rows.append(
                        {"kind": kind, "layer": layer, "expert": number, "heads": heads}
                        | {f"lambda / H{name}": float(f"{float(value):.6g}") for name, value in values.items()}
                    )
    return rows


def _patches(network: ExpandableViT) -> list[str]:
    there = {entry[0] for entry in find_host(network).entries}
    return [kind for kind in PATCHES if kind in there]


def _brief(groups: AttentionGroups) -> dict[str, Any]:
    tree = groups.to_dict()
    return {name: value for name, value in tree.items() if name in BRIEF or not name.startswith(("table", "rows"))}
