"""The one loop: tasks, stages, epochs, batches. Stepped by hand, interrupted anywhere, resumed exactly."""

import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from torch import Tensor

from dne_lab.core import chance, files, shown
from dne_lab.core.config import Config
from dne_lab.core.errors import LabError
from dne_lab.core.folder_lock import alone_in
from dne_lab.data.identity import fingerprint
from dne_lab.data.memory import ExemplarMemory
from dne_lab.data.stream import ClassStream, Task
from dne_lab.measure import budget
from dne_lab.measure.record import Record
from dne_lab.methods import base
from dne_lab.methods.base import BALANCED, BASE, Stage
from dne_lab.training import archive, distributed, evaluation, run_data, sharing, stems, step, storage
from dne_lab.training.captured import Captured
from dne_lab.training.feed import Feed, clean
from dne_lab.training.position import Cursor
from dne_lab.training.progress import OutOfTime, Progress, Signals
from dne_lab.training.run_folder import Arrays, RunFolder, read_config
from dne_lab.training.step import Optimisation, Reader


class Run:
    """A method and the stream it learns. What ``folder`` holds of this configuration is loaded, and gone on from.

    Args:
        config: what to run.
        stream: the classes; default: those that ``config.data`` describes. A method with ``joint`` gets all at once.
        folder: where everything is kept; None: in memory only.
        device: default: the GPU, if there is one.
        checkpoint_seconds: a checkpoint is written when that much time has passed since the last one.
        progress: show a bar (a line per task where there is no terminal).
        accept_changed_data: go on where images or names of classes are others than before; the record says so.
        capture: on a GPU replay training steps as CUDA graphs (`captured.Captured`).

    Under torchrun all processes make the same runs in the same order; the first one alone looks into folders.

    Raises:
        LabError: a folder of another configuration, a damaged or foreign checkpoint (which stay untouched), bad input.

    Attributes: ``config``, ``stream``, ``device``, ``viewers`` (called after epochs and tasks), ``state`` (all else).
    """

    def __init__(
        self,
        config: Config,
        stream: ClassStream | None = None,
        folder: str | Path | None = None,
        device: str | torch.device | None = None,
        checkpoint_seconds: float = 60.0,
        progress: bool = True,
        accept_changed_data: bool = False,
        capture: bool = False,
    ) -> None:
        cls = base.find(config.method)
        mine = distributed.start()
        self.processes = distributed.Processes()
        self.device = torch.device(device or mine or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.checkpoint_seconds = checkpoint_seconds
        self.progress = progress and self.processes.first
        self.files = RunFolder(folder)
        if folder is not None:
            self.processes.from_first(lambda: self.files.check(config))
        self.whole_stream = run_data.stream_for(config, stream)
        self.stream = self.whole_stream.joint() if cls.joint else self.whole_stream
        self.config = storage.placed(budget.resolved(config, self.stream), self.stream)
        self.accept_changed_data, self.capture = accept_changed_data, capture
        self.viewers: list[Callable[[Any], None]] = []
        self._archive: TemporaryDirectory[str] | None = None  # the folder that this run was unpacked into
        self._load()

    def _load(self) -> None:
        """To where the folder says that the run was; its start, where there is nothing."""
        self.state = storage.load(self.files, self.config, self.stream, self.device, self.accept_changed_data)
        self.signals, self.reader = Signals(), Reader(self.processes)
        self._saved_at = time.monotonic()

    @classmethod
    def open(cls, path: str | Path, stream: ClassStream | None = None, **settings: Any) -> Self:
        """The run in a folder, or in an archive that `archive.export` wrote (to look at and fork, not to train on).

        ``stream`` is needed for arrays in memory; ``settings`` are those of the constructor.
        """
        path = files.absolute(path)
        distributed.start()
        from_first = distributed.Processes().from_first
        if from_first(path.is_dir):
            config = from_first(lambda: read_config(path))
            return cls(config, stream or run_data.stream_of_run(config, path), path, **settings)
        if path.suffix == archive.SUFFIX:
            model = archive.read_model(path)
            run = cls(model.config, stream or storage.stream_of_model(model), None, **settings)
            storage.load_model(path, run.state)
            return run
        unpacked = archive.unpack(path)
        with archive.within(path, unpacked.name):
            config = read_config(place := Path(unpacked.name))
            run = cls(config, stream or run_data.stream_of_run(config, place), place, **settings)
        run._archive = unpacked  # the folder lives as long as the run
        return run

    def __repr__(self) -> str:
        done = "finished" if self.finished else f"at {self.state.place()}"
        what = f"{self.stream.name} {'+'.join(map(str, self.stream.tasks))}"
        return f"Run({self.config.method}, {what}, seed {self.config.seed}, {done}, in {self.files})"

    # What it offers --------------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path | None:
        """The run folder."""
        return self.files.path

    @property
    def method(self) -> base.Method:
        """What learns."""
        return self.state.method

    @property
    def model(self) -> Any:
        """The method's network (the method itself, if it has no ``model``)."""
        return self.state.model

    @property
    def memory(self) -> ExemplarMemory:
        """The exemplars."""
        return self.state.memory

    @property
    def predictions(self) -> Arrays:
        """Ranks of the test images after each task: task_NN/labels (true) and task_NN/NAME (predicted)."""
        return self.state.predictions

    @property
    def cursor(self) -> Cursor:
        """The next step: (task, stage, epoch, step)."""
        return self.state.cursor

    @property
    def finished(self) -> bool:
        """Whether all tasks have been learned."""
        return self.state.finished

    @property
    def curves(self) -> list[dict[str, Any]]:
        """A row per epoch: task, stage, epoch (1, 2, ...), lr at its last step, the mean of each named loss."""
        return self.state.position.curves

    @property
    def record(self) -> Record:
        """Everything that is known so far; of a run that was finished before, what was written then."""
        return evaluation.record_of(self.state)

    def method_at(self, task: int) -> base.Method:
        """The method as it was after a finished task, in evaluation mode; `LabError` if it is not finished."""
        return storage.method_at(self.files, self.state, task)

    def model_at(self, task: int) -> Any:
        """The network as it was after a finished task (the method itself, if it has no ``model``)."""
        method = self.method_at(task)
        return getattr(method, "model", method)

    def fork(self, folder: str | Path | None = None, *, after: int | None = None, **changes: Any) -> Self:
        """A new run that starts after this one's task 1: ``run.fork("runs/ia", method="ia")``; dotted fields as
        ``**{"network.heads": "12,2"}``.

        It is the run that would have trained task 1 itself. With ``after`` it starts after that task instead, whatever
        settings the tasks up to there were learned with, to learn what follows in several ways:
        ``run.fork("runs/longer", after=5, **{"learn.epochs": 40})``. Its record says so (``forked_from``).

        Raises:
            LabError: the task is not finished, or is none of this run's; task 1 would not be the same; ``after`` with
                another method, network, stream or memory: lists what differs; the folder has a run of its own.
        """
        base.refuse_ignored(str(changes.get("method", self.config.method)), changes)
        return self.fork_as(base.with_changes(self.config, changes), folder, after)

    def fork_as(self, config: Config, folder: str | Path | None = None, after: int | None = None) -> Self:
        """`fork` with a whole configuration."""
        config, stream = sharing.settings(self.state, self.files, self.whole_stream, config, after)
        run = type(self)(config, stream, folder, self.device, self.checkpoint_seconds, self.progress)
        if run.cursor != Cursor():
            raise LabError(f"{run.files} is a run that has begun: open it and go on, or fork into another folder.")
        sharing.begin(self.state, self.files, run.state, run.files, config, after)
        run.save()
        return run

    def plot(self) -> Any:
        """Accuracy on the classes of each task after each task so far, as a figure.

        Raises:
            LabError: no task is finished.
        """
        return shown.show(self.record, "plot", instead="run.record.table()")

    def watch(self) -> Any:
        """A view for a notebook that follows the training: where it is, losses by epoch, accuracy after each task.

        Call it before `train` or `next_task`, as the last line of its own cell.

        Raises:
            LabError: no ipywidgets here.
        """
        return shown.show(self, "watch", instead="run.curves and run.record.table()")

    # Keeping it ------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes the checkpoint and what follows from it; the folder is as it was if that fails.

        Raises:
            LabError: the folder has gone on elsewhere, or is gone; a file cannot be written.
        """
        if self.processes.first:
            self.files.check_still_there()
            self.files.check_not_behind()
        with self.state.changing():
            self.reader.look(self.state.position)  # a step with a NaN is no checkpoint
        if not self.finished:
            self.state.spend("learning" if self.state.position.begun else "preparation")
        if self.state.unwritten:
            storage.save_task(self.files, self.state, self.state.unwritten)
        storage.save(self.files, self.state)
        self.state.unwritten, self._saved_at = 0, time.monotonic()

    def _write_unwritten(self) -> None:
        """Writes the files of a task that has just been finished, also if that failed before."""
        if self.state.unwritten or (self.finished and self.state.record is None and self.folder is not None):
            self.save()

    def _check_trainable(self) -> None:
        """Raises a `LabError` for a run in an archive, and for one that must start after another one and does not."""
        if self._archive is not None:
            raise LabError("an archive is not trained on: unzip it into a folder and open that.")
        if self.config.start is not None and not self.state.position.forked_from:
            raise LabError(
                f"{self.files}: this configuration goes on after another run (start = {self.config.start}). Begin it "
                "with run.fork(after=...) or dne-lab run --from RUN --after T."
            )

    def _check_signals(self) -> None:
        """Stops here if a signal has arrived (several processes only stop between steps, together)."""
        if self.processes.world == 1:
            self.signals.check()

    def _show(self) -> None:
        for viewer in self.viewers:
            viewer(self)

    # Training ------------------------------------------------------------------------------------------------------

    def next_task(self) -> None:
        """Learns the next task, or what is left of one that was interrupted. Errors are those of `train`."""
        self._train(self.cursor.task, None)

    def train(self, seconds: float | None = None, lock: bool = True, last: int | None = None) -> None:
        """Learns all that is left; after ``seconds`` it writes a checkpoint and returns (see `finished`).

        ``lock``: False where the caller holds the folder already (`alone_in`); ``last``: the task to end after.

        Raises:
            LabError: NaN or Inf in a loss; a file that cannot be written; the folder is gone. `train()` goes on when
                that is mended. Under torchrun also: other images elsewhere, or a process that is `distributed.Lost`.
            KeyboardInterrupt: Ctrl-C, or another signal (`progress.Terminated`), after a checkpoint.
        """
        if seconds is not None and not seconds >= 0:
            raise LabError(f"seconds = {seconds}: give seconds, from 0 on.")
        self._train(len(self.stream) if last is None else last, seconds, lock)

    def _train(self, last: int, seconds: float | None, lock: bool = True) -> None:
        self._check_trainable()
        folder, processes = self.folder, self.processes
        with ExitStack() as held, Signals() as signals:
            processes.from_first(self.files.check_still_there)  # before the lock makes a folder
            if folder is not None and lock:
                processes.from_first(lambda: held.enter_context(alone_in(folder)))
            behind = folder is not None and processes.first and self.files.behind
            behind, half_changed = processes.any(behind, self.state.half_changed, device=self.device)
            if behind and not half_changed:
                warnings.warn(f"{self.files} has gone on elsewhere: this run goes on from what is there.", stacklevel=3)
                self._load()
            if processes.world > 1:
                first = processes.gather(fingerprint(self.stream))[0]
                processes.each(lambda: storage.check_data(self.stream, first))
            if folder is not None:
                processes.from_first(lambda: storage.begin(self.files, self.state))
                if processes.first:
                    files.remove_leftovers(folder)
            if half_changed:
                if self.folder is None:
                    raise LabError(
                        "this run was stopped in the middle of a step and is kept in memory only, so it cannot go on. "
                        "Start it again; with a folder it would go on from its last checkpoint."
                    )
                self._load()
            self.signals = signals
            self.state.clock.start()
            self._deadline = None if seconds is None else time.monotonic() + seconds
            try:
                self._write_unwritten()
                with self.state.multiplying(str(self.files)):
                    while self.cursor.task <= last and not self.finished:
                        self._learn(self.stream.task(self.cursor.task))
            except OutOfTime:
                self.save()
            except KeyboardInterrupt:
                if not self.state.half_changed:
                    self.save()
                raise
            except (MemoryError, RuntimeError) as error:
                if step.out_of_memory(error):
                    raise LabError(step.TOO_LARGE.format(self.state.place())) from error
                raise
            finally:
                self.method.eval()

    def _learn(self, task: Task) -> None:
        """One task: its stages, then what is done with their result."""
        stages = self.method.stages(task)
        if len({stage.name for stage in stages}) < len(stages):
            raise LabError(f"method {self.config.method}: the stages of task {task.number} need different names.")
        sizes = [stage.recipe.epochs * stage.recipe.steps(self.state.size(task, stage)) for stage in stages]
        title = f"{self.config.method} s{self.config.seed} task {task.number}/{len(self.stream)}"
        self._bar = Progress(self.progress, title, sum(sizes), sum(sizes[: self.cursor.stage]))
        result = ""
        try:
            while self.cursor.stage < len(stages):
                self._learn_stage(task, stages[self.cursor.stage])
            evaluation.finish(self.state, task, self._check_signals)
            self._write_unwritten()
            self._show()
            result = f"accuracy {self.record.seen_accuracy[-1]:.1f}%"
        finally:
            self._bar.close(result)

    def _learn_stage(self, task: Task, stage: Stage) -> None:
        """One optimisation: the epochs and steps that the cursor has not passed."""
        if stage.data == BALANCED:
            evaluation.choose_exemplars(self.state, task, self._check_signals)
            evaluation.predict_before_tuning(self.state, task, self._check_signals)
        if not self.state.position.begun:
            self._begin(task, stage)
        shared = bool(stage.shares) and self.cursor[2:] == (0, 0) and stems.take(self.folder, self.state, stage)
        if shared:
            self.state.position.cursor = self.cursor._replace(epoch=stage.recipe.epochs)
        index = self.state.index(task, stage)
        with torch.no_grad(), self.state.autocast():
            self.method.eval().prepare(task, stage, clean(self.stream, "train", index, self.device))
        steps = stage.recipe.steps(len(index))
        feed = Feed(self.stream, index, stage.recipe, self.device)
        self._captured = Captured.of(self.state, task, stage, feed) if self.capture else None
        self._bar.stage(stage.name)
        self.method.train()
        while self.cursor.epoch < stage.recipe.epochs:
            where = (task.number, stage.name, self.cursor.epoch)
            order = chance.permutation(len(index), self.config.seed, "order", *where)
            parts = (index[order] if stage.shuffle else index).split(stage.recipe.batch)
            with feed.epoch((self.config.seed, "augment", *where)):
                while self.cursor.step < steps:
                    rate = stage.recipe.rate(self.cursor.epoch + self.cursor.step / steps)
                    self._step(task, stage, feed, rate, *parts[self.cursor.step :][:2])
                    self._pause()
            self._end_epoch(where, rate=stage.recipe.rate(self.cursor.epoch + (steps - 1) / steps))
        with self.state.changing():  # half changed weights are not gone on from
            self.state.check_weights()
        if stage.shares and not shared:
            stems.keep(self.folder, self.state, stage)
        self.state.position.cursor, self.state.position.begun = Cursor(task.number, self.cursor.stage + 1), False

    def _begin(self, task: Task, stage: Stage) -> None:
        """Enters a stage: structure first, then what needs data, then the optimiser."""
        with self.state.changing():
            self.state.enter(self.method, task, stage)
            plain = clean(self.stream, "train", self.state.index(task, stage), self.device)
            with chance.seeded(self.config.seed, "initialise", task.number, stage.name), torch.no_grad():
                self.method.eval().initialise(task, stage, plain)
            self.processes.same(self.method)
            before = self.state.optimisation if stage.keep_optimizer else None
            self.state.optimisation = Optimisation.of(self.method, stage.recipe, before)
            position = self.state.position
            if stage.data != BASE and len(position.trainable) < task.number:
                position.trainable.append(sum(p.numel() for p in self.state.optimisation.parameters.values()))
            position.begun, position.optimizer_of = True, (task.number, self.cursor.stage)
        self.state.spend("preparation")
        self._pause()

    def _step(self, task: Task, stage: Stage, feed: Feed, rate: float, order: Tensor, *following: Tensor) -> None:
        """One batch, and which comes next: losses, gradients, update. The cursor moves with the weights."""
        where = (task.number, stage.name, self.cursor.epoch)
        assert self.state.optimisation is not None
        place = f"task {where[0]}, stage {where[1]}, epoch {where[2] + 1}, step {self.cursor.step + 1}"
        if self._captured is not None and self._captured.takes(order):
            with self.state.changing():
                losses = self._captured.step(order, rate, where)
                self.reader.add(losses, 1.0, len(order), place, self.state.position)
                self.state.position.cursor = self.cursor._replace(step=self.cursor.step + 1)
            self._bar.step(self.reader.latest)
            return
        mine, share = self.processes.share(order)
        batch = feed.batch(mine, *(self.processes.share(part)[0] for part in following))
        with self.state.changing():
            with chance.batch((self.config.seed, "depth", *where), batch.index), self.state.autocast():
                losses = self.method.losses(batch, task, stage)
            self.reader.add(losses, share, len(order), place, self.state.position)
            total = torch.stack(list(losses.values())).sum() * share
            total.backward()
            self.processes.add_gradients(self.state.optimisation.parameters.values())
            self.state.optimisation.step(rate)
            self.state.position.cursor = self.cursor._replace(step=self.cursor.step + 1)
        self._bar.step(self.reader.latest)

    def _end_epoch(self, where: tuple[int, str, int], rate: float) -> None:
        task, stage, epoch = where
        row = {"task": task, "stage": stage, "epoch": epoch + 1, "lr": rate}
        with self.state.changing():
            self.state.position.curves.append(row | self.reader.means(self.state.position))
            self.state.position.cursor = Cursor(task, self.cursor.stage, epoch + 1)
        self.state.spend("learning", stage)
        self._show()

    # Stopping ------------------------------------------------------------------------------------------------------

    def _pause(self) -> None:
        """Between two steps the run is whole: the moment to stop, or to save."""
        if self.processes.world > 1 and self.reader.waiting:
            return  # processes agree only where they wait for each other anyway
        now = time.monotonic()
        stop, late, due = self.processes.any(
            self.signals.received is not None,
            self._deadline is not None and now >= self._deadline,
            now >= self._saved_at + self.checkpoint_seconds,
            device=self.device,
        )
        if stop:
            self.signals.stop(self.processes.largest(self.signals.received or 0, self.device))
        if late:
            raise OutOfTime
        if due:
            self.save()
