"""Network expansion: one task expert per task, the rest frozen. IA, STA, DNE and progressive are rows of one switch."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from dne_lab.core.config import Config
from dne_lab.core.errors import LabError
from dne_lab.core.schema import OneOf, build, settings
from dne_lab.data.stream import Batch, ClassStream, Task
from dne_lab.methods.base import BASE, Cached, Method, Stage, check_stage
from dne_lab.models import controls, literal, variants
from dne_lab.models.backbone import FrozenExpert
from dne_lab.models.expandable import ExpandableViT, Output
from dne_lab.models.expert import TaskAttentionParameters
from dne_lab.models.variants import Variant

QUARTER = 4  # the part of the epochs, one in so many, before task attention is restricted
STAGES = ("stem", "warm-up", "learn", "tune")
CACHED_BYTES = 2**29  # of what frozen experts compute for the images of a stage; beyond that they run in every step


@settings
class VariantOptions:
    """Columns of `Variant` that a run sets for itself; None: as the method's variant has it."""

    reads: Annotated[str, OneOf(variants.READS)] | None = None
    mixes: Annotated[str, OneOf(variants.MIXES)] | None = None
    experts: Annotated[str, OneOf(controls.EXPERTS)] | None = None
    most: Annotated[int, Field(ge=0, le=10**6)] | None = None
    weights: Annotated[str, OneOf(controls.WEIGHTS)] | None = None
    masked: Annotated[str, OneOf(controls.MASKED)] | None = None
    mass: Annotated[str, OneOf(controls.MASS)] | None = None
    pictures: Annotated[str, OneOf(controls.PICTURES)] | None = None
    projections: Annotated[str, OneOf(controls.PROJECTIONS)] | None = None
    temperature: Annotated[float, Field(ge=controls.COLDEST, le=controls.HOTTEST)] | None = None
    entropy: Annotated[float, Field(gt=0, le=1)] | None = None
    query_rate: Annotated[float, Field(gt=0, le=controls.FASTEST)] | None = None


class Expansion(Method):
    """Learns each task with a new expert under the paper's objective; a subclass names the variant.

    Stage "stem" of task 1, with a convolutional stem: its cross entropy on the classes of task 1, nothing else.
    With a backbone expert 1 is there, and frozen: task 1 learns a classifier of its read-out.
    Stage "warm-up" from task 2 on, where a control restricts task attention: as "learn", at a constant rate, for
    the first quarter of its epochs; "learn" goes on with its optimiser, but the parameters of task attention are new
    ones then, whose moments start at zero.
    Stage "learn": (1 - l) classification + l KL to the old logits + 0.1 task expertise, l = old / (old + new) classes;
    stage "tune": classification alone on balanced exemplars, the classifier alone.

    A subclass may give other `stages` of these names: the expert comes with the first of "warm-up" and "learn", a
    second one goes on training it. A stage of another name needs an `enter` of its own.
    """

    variant: ClassVar[Variant] = variants.IA
    shares_first_task: ClassVar[bool] = True
    Options: ClassVar[type] = VariantOptions
    training_only: ClassVar[tuple[str, ...]] = ("model.teacher", "model.expertise", "model.stem.classifier")
    _grew: tuple[int, str] = (0, "")  # the task and the stage that brought the newest expert
    _tuned: int = 0  # the task whose "tune" came last

    def __init__(self, config: Config, stream: ClassStream) -> None:
        super().__init__(config, stream)
        self.model = ExpandableViT(config.network, stream.shape, self.variant_of(config), stream.mean, stream.std)
        self.set_precision()
        self._cached: Cached | None = None  # read-outs, side by side
        self._offered: Cached | None = None  # what frozen experts offer

    @classmethod
    def variant_of(cls, config: Config) -> Variant:
        """The variant of a run: the method's own, with what the run's options change.

        Raises:
            LabError: a column that does not exist, or that this variant cannot have.
        """
        options: Any = build(cls.Options, config.options, "options.")
        columns = {name: getattr(options, name, None) for name in variants.COLUMNS}
        try:
            return dataclasses.replace(cls.variant, **{n: value for n, value in columns.items() if value is not None})
        except LabError as error:
            raise LabError(str(error).replace("Variant.", "options.")) from None

    @classmethod
    def options_of_task_1(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Without the columns of `Variant`: expert 1 is a plain transformer under all of them."""
        return {name: value for name, value in options.items() if name not in variants.COLUMNS}

    def set_precision(self) -> None:
        """Tells the stem whether it runs in bfloat16."""
        if self.model.stem is not None:
            self.model.stem.bf16 = self.config.precision == "bf16-stem"

    def stages(self, task: Task) -> list[Stage]:
        """Those of every method, in task 1 after the stem's."""
        stem = (
            [Stage("stem", self.config.stem, BASE, shares="model.stem.")]
            if task.number == 1 and self.model.stem is not None
            else []
        )
        stages = super().stages(task)
        if self._restricts(task):
            learn, *rest = stages
            first = max(1, learn.recipe.epochs // QUARTER)
            left = max(0, learn.recipe.epochs - first)
            warm_up = dataclasses.replace(learn.recipe, epochs=first, schedule="constant")
            stages = [
                Stage("warm-up", warm_up),
                Stage("learn", dataclasses.replace(learn.recipe, epochs=left, warmup=0.0), keep_optimizer=True),
                *rest,
            ]
        return stem + stages

    def enter(self, task: Task, stage: Stage) -> None:
        """The stem alone in "stem"; an expert for the first of "warm-up" and "learn"; the classifier alone in "tune".

        Raises:
            LabError: a stage of another name, or one that cannot come where it does.
        """
        self._check(task, stage)
        if stage.name == "stem":
            self.model.learn_stem(self._base)
        elif stage.name == "tune":
            self._tuned = task.number
            self.tune()
        elif not self._has_grown(task):
            self._grew = (task.number, stage.name)
            self.grow(task)
        elif stage.name == "learn" and self._restricts(task):
            self.model.restrict_task_attention()

    def grow(self, task: Task) -> None:
        """What a task adds to the network, once per task."""
        self.model.expand(self.config.network.heads_of(task.number), len(task.new))

    def rates(self) -> dict[str, float]:
        """Those of task attention's W_q and W_k, where the variant gives them one of their own."""
        if self.model.variant.query_rate == 1:
            return {}
        made = {
            f"{name}.{weight}"
            for name, module in self.named_modules()
            for weight in ("w_q", "w_k")
            if isinstance(module, TaskAttentionParameters)
        }
        return dict.fromkeys(made & self.parameters_to_train().keys(), self.model.variant.query_rate)

    def tune(self) -> None:
        """What trains in "tune"."""
        self.model.tune_classifier()

    def _has_grown(self, task: Task) -> bool:
        return self.model.classifier.classes >= task.new.stop

    def _restricts(self, task: Task) -> bool:
        return self.model.variant.restricts_task_attention and task.number > 1

    def _check(self, task: Task, stage: Stage) -> None:
        """Raises a `LabError` for a stage that would grow the network twice, or train what is not there."""
        check_stage(self, stage, STAGES)
        grown, tuned = self._has_grown(task), self._tuned == task.number
        if stage.name == "stem" and (self.model.stem is None or task.number > 1 or grown):
            wrong = 'a stem learns in the first stage of task 1, with network.stem = "conv"'
        elif stage.name == "tune" and not grown:
            wrong = '"learn" comes before it: there is nothing to tune yet'
        elif stage.name in ("warm-up", "learn") and tuned:
            wrong = 'it comes before "tune", which has ended the training of the expert'
        elif stage.name == "learn" and not grown and self._restricts(task):
            wrong = '"warm-up" comes before it: what task attention is restricted to follows from what it read there'
        else:
            return
        raise LabError(f"{self.config.method}, stage {stage.name!r} of task {task.number}: {wrong}.")

    @property
    def _base(self) -> int:
        """Classes of the stream's first task, which the stem learns; also of a joint model."""
        return self.config.data.tasks[0]

    def initialise(self, task: Task, stage: Stage, batches: Iterator[Batch]) -> None:
        """After the stem's own stage the mean and deviation of its maps over the images that it has learned; after a
        warm-up what task attention read; before the second expert the pictures that are kept to be read."""
        grew = self._grew == (task.number, stage.name)
        if task.number == 1 and grew and self.model.stem is not None:
            self.model.stem.measure(b.images[b.labels < self._base] for b in batches)
        if task.number == 2 and grew and self.model.pictures is not None:
            first, *rest = list(batches)
            self.model.keep_pictures(torch.cat([first.images, *(b.images for b in rest)]))
            batches = iter([first, *rest])
        if stage.name == "learn" and self._restricts(task):
            self.model.choose_most_read(b.images for b in batches)

    def prepare(self, task: Task, stage: Stage, batches: Iterator[Batch]) -> None:
        """Without augmentation what frozen experts compute is computed once: where the classifier alone learns ("tune",
        and on a backbone alone) all read-outs; else all that the new expert reads, if it fits into `CACHED_BYTES`."""
        self._cached = self._offered = None
        if stage.recipe.augment:
            return
        if stage.name == "tune" or (stage.name == "learn" and self.model.still):
            self._cached = Cached(batches, self.features)
        elif stage.name in ("learn", "warm-up") and self.model.may_offer:
            first = next(batches)  # where one batch is too much for memory, it is not even tried
            if len(first.images) * self.model.bytes_offered <= CACHED_BYTES:
                self._offered = Cached.within(CACHED_BYTES, itertools.chain([first], batches), self.model.offer)

    def losses(self, batch: Batch, task: Task, stage: Stage) -> dict[str, Tensor]:
        """The weighted terms by name."""
        if stage.name == "stem":
            return self.stem_losses(batch)
        if stage.name == "tune" or self._cached is not None:
            return {"classification": self.classification(self._logits(batch), batch.labels)}
        if self._offered is not None and self.model.may_offer:  # a hook may have come since
            output = self.model.forward_newest(batch.images, self._offered.parts(batch.index))
        else:
            output = self.model(batch.images)
        return self.objective(output, batch.labels, task)

    def stem_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy of the stem's own classifier."""
        assert self.model.stem is not None
        return {"classification": F.cross_entropy(self.model.stem.logits(batch.images).float(), batch.labels)}

    def _logits(self, batch: Batch) -> Tensor:
        if self._cached is None or self.model.hooked:  # a hook is called by what runs
            return self.model(batch.images).logits
        widths = [weight.shape[1] for weight in self.model.classifier.weights]
        return self.model.classifier(self._cached(batch.index).split(widths, 1))

    def objective(self, output: Output, labels: Tensor, task: Task) -> dict[str, Tensor]:
        """The paper's training objective for (B, classes) logits and (B,) ranks, by name.

        With l = old classes / all classes: (1 - l) classification + l distillation + 0.1 expertise; expertise is a
        classification into the new classes and one class 0 for all old ones, from the newest read-out.
        """
        old = len(task.old)
        share = old / task.new.stop
        terms = {"classification": (1 - share) * self.classification(output.logits, labels)}
        if output.old_logits is not None:
            terms["distillation"] = self.config.loss.distillation * share * self.distillation(output)
        if output.expertise is not None:
            expertise = (labels - (old - 1)).clamp(min=0)  # class 0 = any old class
            terms["expertise"] = self.config.loss.expertise * self.classification(output.expertise, expertise)
        return terms

    def classification(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy, or binary cross entropy as the mean over all elements."""
        logits = logits.float()
        if self.config.loss.classification == "ce":
            return F.cross_entropy(logits, labels)
        return F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, logits.shape[1]).to(logits.dtype))

    def distillation(self, output: Output) -> Tensor:
        """KL(softmax of the old logits || softmax of the new logits of old classes), temperature 1."""
        assert output.old_logits is not None
        old = output.old_logits.float().log_softmax(1)
        new = output.logits[:, : old.shape[1]].float().log_softmax(1)
        terms = old.exp() * (old - new)
        return terms.sum(1).mean() if self.config.loss.reduction == "batch" else terms.mean()

    def features(self, images: Tensor) -> Tensor:
        """The concatenated read-outs of all experts, (B, sum of widths)."""
        return torch.cat(self.model.readouts(images), 1)

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """The classifier's logits."""
        return {"classifier": self.model(images).logits}

    def compute(self, images: Tensor) -> Tensor:
        """One prediction as it runs (for counting cost)."""
        return self.model.classifier(self.model.readouts(images))

    def compute_literally(self, images: Tensor) -> Tensor:
        """One prediction as the equations are written."""
        return self.model.classifier(literal.readouts(self.model, images))

    def network_to_keep(self) -> list[torch.nn.Module]:
        """What predicts: without teacher and expertise classifier."""
        return [*self._stem, self.model.experts, self.model.classifier]

    @property
    def _stem(self) -> list[torch.nn.Module]:
        return [] if self.model.stem is None else [self.model.stem]

    def network_settings(self) -> dict[str, Any]:
        """The transformer's sizes and choices; the digest of a backbone's weights once they are there."""
        digest = next((expert.sha256 for expert in self._backbone), "")
        return dict(self.config.identity()["network"]) | ({"backbone_sha256": digest} if digest else {})

    def parameters_of_backbone(self) -> int:
        """Parameters of a pretrained expert 1, of which this run has learned none."""
        return sum(p.numel() for expert in self._backbone for p in expert.parameters())

    @property
    def _backbone(self) -> list[FrozenExpert]:
        return [expert for expert in self.model.experts if isinstance(expert, FrozenExpert)]

    def task_state(self, task: Task) -> dict[str, Tensor]:
        """The task's expert and the classifier as they are now; the stem with task 1."""
        prefixes = [f"model.experts.{task.number - 1}.", "model.classifier.", "model.mean", "model.std"]
        prefixes += ["model.stem."] if task.number == 1 else ["model.pictures"] if task.number == 2 else []
        return {name: value for name, value in self.state_dict().items() if name.startswith(tuple(prefixes))}


class IndependentAttention(Expansion):
    """IA: each expert is a transformer of its own (eq. 12-13)."""

    name = "ia"
    title = "IA"
    variant = variants.IA


class SpatialTaskAttention(Expansion):
    """STA: keys and values are every patch of every head of every expert so far."""

    name = "sta"
    title = "STA"
    variant = variants.STA


class DenseNetworkExpansion(Expansion):
    """DNE: the feature mixing reads the heads of all experts through task attention blocks (eq. 16-23)."""

    name = "dne"
    title = "DNE"
    variant = variants.DNE


class Progressive(Expansion):
    """Linear cross connections in front of every block (eq. 11)."""

    name = "progressive"
    title = "Progressive"
    variant = variants.PROGRESSIVE
