"""The one loop: tasks, stages, epochs, batches. Stepped by hand, interrupted anywhere, resumed exactly."""

import time
from contextlib import nullcontext

import torch
from torch import Tensor

from dne_lab import chance, files
from dne_lab.data.stream import Task
from dne_lab.errors import LabError
from dne_lab.methods.base import BALANCED, BASE, Stage
from dne_lab.training import batches, saving, stems, taskend
from dne_lab.training.handle import Handle
from dne_lab.training.optimise import Optimisation
from dne_lab.training.progress import Progress
from dne_lab.training.signals import Signals
from dne_lab.training.state import Cursor


class OutOfTime(Exception):
    """The seconds given to `Run.train` are over; never leaves it."""


class Run(Handle):
    """A method learning a stream of classes; see `Handle` for its arguments, its attributes and what it shows."""

    # Training ------------------------------------------------------------------------------------------------------

    def next_task(self) -> None:
        """Learns the next task, or what is left of one that was interrupted. Errors are those of `train`."""
        self._train(self.cursor.task, None)

    def train(self, seconds: float | None = None) -> None:
        """Learns all that is left; after ``seconds`` it writes a checkpoint and returns (see `finished`).

        Raises:
            LabError: NaN or Inf in a loss; a file that cannot be written. `train()` goes on when that is mended.
            KeyboardInterrupt: Ctrl-C or SIGTERM (`signals.Terminated`), after a checkpoint.
        """
        self._train(len(self.stream), seconds)

    def _train(self, last: int, seconds: float | None) -> None:
        self.check_trainable()
        writes = self.processes.first and self.folder is not None
        locks = writes and not self.held
        with files.alone_in(self.folder) if locks and self.folder else nullcontext(), Signals() as self.signals:
            if writes and self.folder:
                self.files.claim(self.config)
                files.remove_leftovers(self.folder)
            if self.torn:
                self.mend()
            self.clock.start()
            self._deadline = None if seconds is None else time.monotonic() + seconds
            try:
                self.write_unwritten()
                with self.multiplying():
                    while self.cursor.task <= last and not self.finished:
                        self._learn(self.stream.task(self.cursor.task))
            except OutOfTime:
                self.save()
            except KeyboardInterrupt:
                if not self.torn:
                    self.save()
                raise
            finally:
                self.method.eval()

    def _learn(self, task: Task) -> None:
        """One task: its stages, then what is done with their result."""
        stages = self.method.stages(task)
        if len({stage.name for stage in stages}) < len(stages):
            raise LabError(f"method {self.config.method}: the stages of task {task.number} need different names.")
        sizes = [stage.recipe.epochs * stage.recipe.steps(self._size(task, stage)) for stage in stages]
        done = sum(sizes[: self.cursor.stage])
        title = f"{self.config.method} s{self.config.seed} task {task.number}/{len(self.stream)}"
        self._bar = Progress(self.progress, title, sum(sizes), done)
        result = ""
        try:
            while self.cursor.stage < len(stages):
                self._learn_stage(task, stages[self.cursor.stage])
            taskend.finish(self, task)
            self.write_unwritten()
            self.show()
            result = f"accuracy {self.record.seen_accuracy[-1]:.1f}%"
        finally:
            self._bar.close(result)

    def _learn_stage(self, task: Task, stage: Stage) -> None:
        """One optimisation: the epochs and steps that the cursor has not passed."""
        if stage.data == BALANCED:
            taskend.choose_exemplars(self, task)
            taskend.predict_before_tuning(self, task)
        if not self.state.begun:
            self._begin(task, stage)
        shared = bool(stage.shares) and self.cursor[2:] == (0, 0) and stems.take(self, stage)
        if shared:
            self.state.cursor = self.cursor._replace(epoch=stage.recipe.epochs)
        index = self._index(task, stage)
        with torch.no_grad(), self._autocast():
            self.method.eval().prepare(task, stage, batches.clean(self.stream, "train", index, self.device))
        steps = stage.recipe.steps(len(index))
        self._bar.stage(stage.name)
        self.method.train()
        while self.cursor.epoch < stage.recipe.epochs:
            where = (task.number, stage.name, self.cursor.epoch)
            order = chance.permutation(len(index), self.config.seed, "order", *where)
            parts = (index[order] if stage.shuffle else index).split(stage.recipe.batch)
            with chance.ahead(index):
                while self.cursor.step < steps:
                    rate = stage.recipe.rate(self.cursor.epoch + self.cursor.step / steps)
                    self._step(task, stage, parts[self.cursor.step], where, rate)
                    self._pause()
            self._end_epoch(where, rate=stage.recipe.rate(self.cursor.epoch + (steps - 1) / steps))
        with self.changing():  # torn weights are not gone on from
            saving.check_weights(self)
        if stage.shares and not shared:
            stems.keep(self, stage)
        self.state.cursor, self.state.begun = Cursor(task.number, self.cursor.stage + 1), False

    def _begin(self, task: Task, stage: Stage) -> None:
        """Enters a stage: structure first, then what needs data, then the optimiser."""
        with self.changing():
            self.enter(self.method, task, stage)
            plain = batches.clean(self.stream, "train", self._index(task, stage), self.device)
            with chance.seeded(self.config.seed, "initialise", task.number, stage.name), torch.no_grad():
                self.method.eval().initialise(task, stage, plain)
            self.processes.same(self.method)
            kept = self.optimisation if stage.keep_optimizer else None
            self.optimisation = Optimisation(stage.recipe, self.method.parameters_to_train(), kept)
            if stage.data != BASE and len(self.state.trainable) < task.number:
                self.state.trainable.append(sum(p.numel() for p in self.optimisation.parameters.values()))
            self.state.begun, self.state.optimizer_of = True, (task.number, self.cursor.stage)
        self.clock.spend(self.state, "preparation")
        self._pause()

    def _step(self, task: Task, stage: Stage, order: Tensor, where: tuple[int, str, int], rate: float) -> None:
        """One batch: losses, gradients, update. The cursor moves with the weights."""
        assert self.optimisation is not None
        mine, share = self.processes.share(order)
        batch = batches.training(self.stream, mine, stage.recipe, (self.config.seed, "augment", *where), self.device)
        with self.changing():
            with chance.batch((self.config.seed, "depth", *where), batch.index), self._autocast():
                losses = self.method.losses(batch, task, stage)
            place = f"task {where[0]}, stage {where[1]}, epoch {where[2] + 1}, step {self.cursor.step + 1}"
            self.reader.add(losses, share, len(order), place, self.state)
            total = torch.stack(list(losses.values())).sum() * share
            total.backward()
            self.processes.add_gradients(self.optimisation.parameters.values())
            self.optimisation.step(rate)
            self.state.cursor = self.cursor._replace(step=self.cursor.step + 1)
        self._bar.step(self.reader.latest, rate)

    def _end_epoch(self, where: tuple[int, str, int], rate: float) -> None:
        task, stage, epoch = where
        row = {"task": task, "stage": stage, "epoch": epoch + 1, "lr": rate}
        with self.changing():
            self.state.curves.append(row | self.reader.means(self.state))
            self.state.cursor = Cursor(task, self.cursor.stage, epoch + 1)
        self.clock.spend(self.state, "learning", stage)
        self.show()

    def _index(self, task: Task, stage: Stage) -> Tensor:
        """The numbers of the training images of a stage, (n,) int64."""
        if stage.data == BALANCED:
            return self.memory.balanced(task.new.stop)
        if stage.data == BASE:
            return self.stream.index("train", range(self.config.data.tasks[0]))
        new = self.stream.index("train", task.new)
        return torch.cat([new, self.memory.index(task.old)]) if self.keeps_exemplars else new

    def _size(self, task: Task, stage: Stage) -> int:
        """How many images a stage will have, also before its exemplars are chosen (for the progress bar)."""
        if stage.data == BALANCED and self.state.chosen < task.number:
            return min(self.memory.quota(task.new.stop) * task.new.stop, self.memory.budget)
        return len(self._index(task, stage))

    def _autocast(self) -> torch.autocast:
        wanted = self.config.precision == "bf16" or (self.config.precision == "auto" and self.device.type == "cuda")
        return torch.autocast(self.device.type, torch.bfloat16, enabled=wanted)

    # Stopping ------------------------------------------------------------------------------------------------------

    def _pause(self) -> None:
        """Between two steps the run is whole: the moment to stop, or to save."""
        if self.processes.world > 1 and self.reader.waiting:
            return  # processes agree only where they wait for each other anyway
        now = time.monotonic()
        stop, late, due = self.processes.any(
            self.signals.received is not None,
            self._deadline is not None and now >= self._deadline,
            now >= self.saved_at + self.checkpoint_seconds,
            device=self.device,
        )
        if stop:
            self.signals.stop()
        if late:
            raise OutOfTime
        if due:
            self.save()
