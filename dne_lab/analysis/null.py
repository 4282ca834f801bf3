"""A null model: what experts would attend to if the other experts looked at another picture."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dne_lab.analysis.hosts.base import Host, heads_of
from dne_lab.analysis.probe import Read
from dne_lab.errors import LabError
from dne_lab.models.attention import JOINT, TASK1, TASK2, Axes
from dne_lab.models.points import AttentionPoint, Context

ACROSS = (JOINT, TASK1, TASK2)  # kinds of attention in which experts read each other


class _Elsewhere(Context):
    """What the other experts offer, from other images of the batch; the expert's own tokens are those of the image."""

    def __init__(self, context: Context) -> None:
        super().__init__(context.heads)
        self.context = context

    def extend(self, name: str, own: Tensor, dim: int) -> Tensor:
        whole = self.context.so_far(name)
        before = whole.narrow(dim, 0, whole.shape[dim] - own.shape[dim])
        return torch.cat([before.roll(len(own) // 2, 0), own], dim)

    def parts(self, name: str, own: Tensor, dim: int) -> list[Tensor]:
        return [self.extend(name, own, dim)]


@contextmanager
def shuffled_reader(host: Host, read: Read) -> Iterator[Read]:
    """Inside, what is yielded passes to ``read`` only the maps of the null model; give it to `probe`.

    At every point where experts read each other's patches the attention is computed a second time, with the tokens of
    the other experts rolled by half a batch: give batches whose halves are of different classes, as `images.parts` with
    ``spread`` makes them of images sorted by class. The network itself goes on with the true attention, so queries are
    the true ones at every layer.

    Raises:
        LabError: experts that do not read each other; inside a pass, a batch of one image.
    """
    points = [part for part in host.network.modules() if isinstance(part, AttentionPoint) and part.kind in ACROSS]
    experts = len(heads_of(host))
    if experts < 2 or not points:
        raise LabError(
            f"shuffled: the experts of this network ({host.title}, {experts} experts) do not read each other, so there "
            "is nothing to shuffle. Give a network of STA or DNE with two experts or more."
        )
    second = [False]

    def passed(part: Tensor, axes: Axes) -> None:
        if second[0]:
            read(part, axes)

    def again(module: AttentionPoint, inputs: tuple[Any, ...], output: Tensor) -> None:
        *before, context, key_heads = inputs
        images = inputs[0].shape[1]
        if images < 2:
            raise LabError("shuffled: a batch of one image has no other image. Give two or more, of several classes.")
        second[0] = True
        try:
            module.forward(*before, _Elsewhere(context), key_heads)
        finally:
            second[0] = False

    with ExitStack() as hooks:
        alone = points[0].weights  # a listener that names every expert takes each out of its batch
        handle = alone.register_forward_hook(_nothing)
        hooks.callback(handle.remove)
        alone.only[handle.id] = frozenset(range(1, experts + 1))
        hooks.callback(alone.only.pop, handle.id, None)
        for module in points:
            hooks.callback(module.register_forward_hook(again).remove)
        yield passed


def _nothing(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
    return None
