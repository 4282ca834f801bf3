"""Reads or replaces attention while a network runs: `probe`, a context manager that owns exactly its own hooks."""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dne_lab.analysis.hosts import ATTENTION, PARTS, Entry, Host, Place, find_host, own_hook
from dne_lab.analysis.maps import AttentionMap, Cut, Key, Maps, cut
from dne_lab.core.errors import LabError, unknown
from dne_lab.data.stream import Batch
from dne_lab.models.attention import Axes

# Which attention points a probe listens to, by kind, layer, expert and head.

Names = str | Iterable[str] | None
Numbers = int | Iterable[int] | None
COLUMNS = ("kind", "layer", "expert", "head")


def select(host: Host, kind: Names, layer: Numbers, expert: Numbers, head: Numbers) -> list[Entry]:
    """The entries of the given kinds, layers, experts and heads (None: all).

    Raises:
        LabError: if a given one does not exist, or nothing of it is left beside the other choices.
    """
    there = host.entries
    asked = {
        "kind": _set("kind", kind, str),
        "layer": _set("layer", layer, int),
        "expert": _set("expert", expert, int),
        "head": _set("head", head, int),
    }
    for column, name in enumerate(COLUMNS):
        known = {entry[column] for entry in there}
        for value in sorted((asked[name] or known) - known):
            if name == "kind":
                raise unknown(f"kind of attention in {host.title}", value, map(str, known))
            raise LabError(f"{name} {value}: this network has {name}s {_numbers(known)}.")
    left = [e for e in there if all(v in (asked[n] or {v}) for n, v in zip(COLUMNS, e, strict=True))]
    for column, name in enumerate(COLUMNS):
        for value in sorted((asked[name] or set()) - {entry[column] for entry in left}):
            mine = [entry for entry in there if entry[column] == value]
            others = ", ".join(f"{n} {_numbers(v)}" for n, v in asked.items() if v and n != name)
            raise LabError(f"no attention of {name} {value} with {others}. {name} {value} has: {describe(mine)}.")
    return left


def describe(found: Iterable[Entry]) -> str:
    """In words: "spatial (layers 0, 1, experts 1), ..."."""
    kinds: dict[str, list[Entry]] = {}
    for entry in found:
        kinds.setdefault(entry[0], []).append(entry)
    return ", ".join(
        f"{kind} ({', '.join(f'{n}s {_numbers({e[c] for e in mine})}' for c, n in enumerate(COLUMNS) if c)})"
        for kind, mine in kinds.items()
    )


def _set(name: str, given: Any, of: type) -> set[Any] | None:
    if given is None:
        return None
    values = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    for value in values:
        whole = of is int and not isinstance(value, bool) and hasattr(value, "__index__")
        if not whole and not (of is str and isinstance(value, str)):
            what = "a name or several" if of is str else "a whole number or several"
            raise LabError(f"{name} = {given!r}: must be {what}, or None for all.")
    if not values:
        raise LabError(f"{name} = {given!r} selects nothing. None selects all.")
    return {of(value) for value in values}


def _numbers(values: Iterable[Any]) -> str:
    """1, 2, 3, 7 -> "1-3, 7"; names as they are."""
    ordered = sorted(values)
    if not all(isinstance(value, int) for value in ordered):
        return ", ".join(map(str, ordered))
    runs: list[list[int]] = []
    for value in ordered:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


Replace = Callable[[Tensor, Axes], Tensor | None]
Read = Callable[[Tensor, Axes], None]
GB = 1_000_000_000
MEMORY_LIMIT = 2 * GB  # bytes of maps kept by one probe


@contextlib.contextmanager
def probe(
    model: nn.Module,
    kind: Names = None,
    layer: Numbers = None,
    expert: Numbers = None,
    head: Numbers = None,
    replace: Replace | None = None,
    dtype: torch.dtype = torch.float32,
    memory_limit: float = MEMORY_LIMIT,
    *,
    keep: bool = True,
    read: Read | None = None,
    part: str = ATTENTION,
) -> Iterator[Maps]:
    """Listens to attention in the forward passes that run inside.

        with probe(run.model, kind="spatial", layer=3) as maps:
            run.model(images)
        maps.get(expert=2).values  # (b, h, p, kp)

    One map per expert, layer and kind, with the keys that the expert may see; further passes are appended along the
    image axis. What is kept is a copy on the CPU. A pass that raises leaves nothing. Only layers and experts that are
    listened to leave the fused kernels; logits agree with those of the fused kernels to 1e-5 of the
    largest in float32. Of nested probes each reads what the ones around it return.

    Not seen: the literal path (`dne_lab.models.literal`), which has no hook points, and compiled networks.

    torchvision's VisionTransformer is read only, and its logits stay bit for bit; its weights are computed a second
    time from what went into the attention. timm's, and the vision models of transformers, are read and replaced; the
    blocks listened to leave the fused kernel until the probe ends. All have kind spatial and expert 1 alone, and maps
    without the dropout of training. They take images as they were made to: floats, already normalised.

    Args:
        model: an `ExpandableViT`, torchvision's or timm's `VisionTransformer`, a ViT, DeiT, DINOv2, DINOv3, SigLIP or
            CLIP vision model of transformers, or a module that holds one.
        kind: spatial, joint, task1, task2, class; one or several. None: all, here and below.
        layer: blocks, from 0.
        expert: whose queries, from 1, as the network has them on entering.
        head: heads within the expert, from 0.
        replace: called for every selected expert with its map, on the network's device and (b, ..) as ``axes.layout``
            says, and its axes; returns what to use instead, of the same shape, or None to leave it. Gradients flow
            through it. What is kept is then the replaced map.
        dtype: of what is kept.
        memory_limit: bytes that may be kept.
        keep: False keeps nothing, to replace or read over a whole data set.
        read: called for every selected expert with its map as ``replace`` is, detached; what it does with it is not
            seen by the network. It must not write into the map.
        part: "attention" is what multiplies V. Under gpsa, "content" and "position" are the two distributions that the
            gate mixes; they can be read, not replaced. Without a gate all is content, as of class tokens: their
            position is all 0.

    Yields:
        `Maps`, filled as passes run.

    Raises:
        LabError: for a choice that matches no point or that the network cannot give (``replace`` on torchvision's), a
            compiled network or one without attention points; inside a pass before a map that would exceed
            ``memory_limit`` is kept, or if ``replace`` returns another shape; on leaving if a selected point did not
            fire.
    """
    host = find_host(model)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise LabError(f"dtype = {dtype!r}: must be a floating point type, such as torch.float32.")
    if not memory_limit > 0:
        raise LabError(f"memory_limit = {memory_limit!r}: must be a positive number of bytes.")
    if part not in PARTS:
        raise unknown("part of the attention", part, PARTS)
    if part != ATTENTION and replace is not None:
        raise LabError(f"part = {part!r} can only be read: replace works on part = {ATTENTION!r}, which multiplies V.")
    host.refuse(part, replacing=replace is not None)
    wanted: dict[Key, set[int]] = {}
    for name, block, number, place in select(host, kind, layer, expert, head):
        wanted.setdefault((name, block, number), set()).add(place)
    maps = Maps()
    listener = _Listener(wanted, host.names, maps, replace, dtype, memory_limit, keep, read)
    with contextlib.ExitStack() as hooks:
        listener.listen(host, part, hooks)
        yield maps
    listener.check()


class _Listener:
    """What the hooks of one probe share. `Maps` does not know it, so it goes with the hooks."""

    def __init__(
        self,
        wanted: dict[Key, set[int]],
        names: dict[Place, str],
        maps: Maps,
        replace: Replace | None,
        dtype: torch.dtype,
        limit: float,
        keep: bool,
        read: Read | None,
    ) -> None:
        self.wanted, self.names, self.maps, self.replace = wanted, names, maps, replace
        self.dtype, self.limit, self.keep, self.read = dtype, limit, keep, read
        self.fired: set[Key] = set()
        self.warned: set[Key] = set()
        self.bytes = 0  # bytes
        self.waiting: list[AttentionMap] | None = None  # what the pass that runs has given so far
        self.fired_now: set[Key] = set()  # in that pass

    def listen(self, host: Host, part: str, hooks: contextlib.ExitStack) -> None:
        """Registers the hooks; ``hooks`` removes them."""
        experts: dict[Place, set[int]] = {}
        for kind, layer, expert in self.wanted:
            experts.setdefault((kind, layer), set()).add(expert)
        host.listen(experts, part, self.receive, hooks)
        own_hook(host.network, host.network.register_forward_pre_hook(self.begin), hooks)
        own_hook(host.network, host.network.register_forward_hook(self.end, always_call=True), hooks)

    def begin(self, network: nn.Module, inputs: tuple[Any, ...]) -> None:
        """A pass starts. Parts of the network called on their own do not come here and are kept at once."""
        self.waiting, self.fired_now = [], set()

    def end(self, network: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """A pass is over; ``output`` is None if it raised."""
        waiting, self.waiting = self.waiting or [], None
        if output is None:
            self.bytes -= sum(part.values.nbytes for part in waiting)
            return
        self.fired |= self.fired_now
        for part in waiting:
            self.maps.add(part)

    def receive(self, output: Tensor, axes: Axes) -> Tensor | None:
        """What a point computes, once for every bank of experts."""
        replaced = False
        for expert in dict.fromkeys(axes.query_expert):
            key = axes.kind, axes.layer, expert
            heads = self.wanted.get(key)
            place = None if heads is None else cut(axes, expert, heads.__contains__)
            if place is None:
                continue
            (self.fired if self.waiting is None else self.fired_now).add(key)
            if self.keep:  # before anything is computed for it
                self._room(key, place, output)
            part = place.take(output)
            if self.replace is not None:
                # its own memory: what is written into it must not count unless it is returned
                new = self.replace(part.clone(), place.axes)
                if new is not None:
                    part = self._checked(new, part, place, key)
                    output, replaced = place.put(output, part), True
            if self.read is not None:
                self.read(part.detach(), place.axes)
            if self.keep:
                self._keep(AttentionMap(_copy(part, self.dtype), place.axes))
        return output if replaced else None

    def _name(self, key: Key) -> str:
        return f"{self.names[key[0], key[1]]} of expert {key[2]}"

    def _room(self, key: Key, place: Cut, output: Tensor) -> None:
        size = self.dtype.itemsize * torch.Size(place.shape(output.shape)).numel()
        if self.bytes + size > self.limit:
            raise LabError(
                f"probe would keep {_bytes(self.bytes + size)} of attention maps with {self._name(key)} "
                f"({_bytes(size)} for {len(output)} images), more than memory_limit = {_bytes(self.limit)}. Select "
                "fewer layers, experts or heads, give fewer images, keep less (dtype=torch.float16), raise "
                "memory_limit, or stream over a data set with lab.attention_groups."
            )

    def _keep(self, part: AttentionMap) -> None:
        self.bytes += part.values.nbytes
        if self.waiting is None:
            self.maps.add(part)
        else:
            self.waiting.append(part)

    def _checked(self, new: Any, part: Tensor, place: Cut, key: Key) -> Tensor:
        if not isinstance(new, Tensor) or new.shape != part.shape:
            given = f"shape {tuple(new.shape)}" if isinstance(new, Tensor) else type(new).__name__
            raise LabError(
                f"replace returned {given} for {self._name(key)}: expected a tensor of shape {tuple(part.shape)} "
                f"({place.axes.layout}), or None to leave the map as it is."
            )
        new = new.to(part)
        if key not in self.warned:
            values = new.detach()
            values = values if values.dtype == torch.float64 else values.float()
            sums = values.sum((-1, -2) if "kh kp" in place.axes.layout else -1)
            if not bool(((sums - 1).abs() <= max(1e-4, 4 * torch.finfo(part.dtype).eps)).all()):
                self.warned.add(key)
                warnings.warn(
                    f"probe: rows of the replaced map of {self._name(key)} do not sum to 1 "
                    f"(from {float(sums.min()):.4g} to {float(sums.max()):.4g}); they are used as they are.",
                    stacklevel=2,
                )
        return new

    def check(self) -> None:
        """Raises if a selected point did not fire."""
        silent = [key for key in self.wanted if key not in self.fired]
        if not silent:
            return
        named: dict[str, list[str]] = {}
        for kind, layer, expert in silent:
            named.setdefault(self.names[kind, layer], []).append(str(expert))
        points = ", ".join(f"{name} (experts {', '.join(experts)})" for name, experts in named.items())
        why = "Call the network inside the with block" if not self.fired else "Run whole forward passes inside"
        raise LabError(
            f"probe: these selected points did not fire: {points}. {why}, the one that was given to probe: a compiled "
            "copy and the literal path call no hooks."
        )


def _copy(values: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy on the CPU of exactly these entries: no graph, no view of something larger, no inference tensor."""
    with torch.inference_mode(False), torch.no_grad():
        return torch.empty(values.shape, dtype=dtype, device="cpu").copy_(values)


def _bytes(size: float) -> str:
    for unit, name in ((GB, "GB"), (GB / 1e3, "MB"), (GB / 1e6, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} bytes"


# Images for the instruments, batch by batch, and a network held in evaluation mode while they look at it.

Images = Tensor | Batch | Iterable[Tensor | Batch]


class ImageBatch(NamedTuple):
    """Images (B, C, H, W) as they were given, their numbers (B,) int64, and labels (B,) or None."""

    images: Tensor
    numbers: Tensor
    labels: Tensor | None


def image_batches(images: Images, size: int, spread: bool = False) -> Iterator[ImageBatch]:
    """Up to ``size`` images at a time, from a batch, a tensor or any number of them.

    Images without numbers of their own are numbered as they come.

    Args:
        spread: every part holds images from the whole length of the batch or tensor that it is cut from, in order, and
            no part one image alone (unless it was given alone; ``size`` 1 then means 2, and one more may come along):
            so of images that are sorted by class those half a part apart are about half the classes apart.

    Raises:
        LabError: something else, or no image at all (on reading the first).
    """
    if isinstance(size, bool) or not hasattr(size, "__index__") or size < 1:
        raise LabError(f"batch_size = {size!r}: must be a whole number, at least 1.")
    given: Iterable[Tensor | Batch] = [images] if isinstance(images, Tensor | Batch) else images
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise LabError(
            f"images is a {type(images).__name__}: give stream.test_images(n), a tensor, or several of them."
        )
    seen = 0
    for some in given:
        if not isinstance(some, Tensor | Batch):
            raise LabError(f"images hold a {type(some).__name__}: give batches or tensors of shape (B, C, H, W).")
        pixels = some.images if isinstance(some, Batch) else some
        if pixels.dim() != 4:
            raise LabError(f"images have shape {tuple(pixels.shape)}: give (B, C, H, W); one image is image[None].")
        index = some.index if isinstance(some, Batch) else torch.arange(seen, seen + len(pixels))
        labels = some.labels if isinstance(some, Batch) else None
        seen += len(pixels)
        for few in _cuts(len(pixels), size, spread):
            yield ImageBatch(pixels[few], index[few], None if labels is None else labels[few])
    if not seen:
        raise LabError("there is no image to look at: the data set is empty.")


def _cuts(count: int, size: int, spread: bool) -> list[slice]:
    """Slices that take each of ``count`` things once."""
    if not spread:
        return [slice(at, at + size) for at in range(0, count, size)]
    steps = max(1, min(-(-count // size), count // 2))
    return [slice(at, None, steps) for at in range(steps)] if count else []


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode and no gradients inside; afterwards every module is as it was. Gives the network's device."""
    modes = [(module, module.training) for module in model.modules()]
    place = next(model.parameters(), torch.zeros(0)).device
    for module, _ in modes:
        module.training = False
    try:
        with torch.no_grad():
            yield place
    finally:
        for module, mode in modes:
            module.training = mode
