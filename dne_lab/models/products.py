"""float32 matrix products: on a CPU by the faster of the two libraries that torch brings, MKL or oneDNN; on a GPU in
TF32 unless a run asks for another precision.

torch gives float32 products on x86 to MKL. On AMD with AVX-512 oneDNN, in the same torch, is faster, and torch has no
setting for it: `torch.set_float32_matmul_precision` and `torch.backends.mkldnn.matmul.fp32_precision` reach oneDNN only
with fewer digits; a 1 x 1 convolution reaches it, but copies (0.8 to 1.1 times MKL's rate where this has 1.1 to 1.4);
`torch.compile` costs more than it gains; another kernel for `aten::mm` by `torch.library` costs 20 microseconds for
every product, also for small ones (a training step on the digits took 1.1 times as long). So the large products of the
network are asked for here, and inside `by` they go to the operator that torch's own compiler uses for linear layers.
"""

import functools
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

MKL, ROWS, ALL = "mkl", "onednn-rows", "onednn"  # by oneDNN: nothing; tall products; gradients of weights as well
CHOICES = (MKL, ROWS, ALL)

TF32, FLOAT32, BF16 = "tf32", "float32", "bf16"  # on a GPU; bf16 by autocast
ON_GPU = (TF32, FLOAT32, BF16)

# How many times as fast oneDNN must be in `PROBED` for a choice. CPUs lie far from both: 1.3 to 1.5 on Zen 4, where the
# units are 256 bits wide, 1.9 to 2.3 where they have 512, the lower end on a busy machine. So two processes choose
# alike, and equal runs stay bit-equal.
SLOWER, MUCH_FASTER = 0.8, 1.7
PROBED = (2048, 256, 256)  # rows, inner, columns: 3 ms
ROUNDS = 8
TOLERANCE = 1e-6  # of the largest value, against float64

# Multiply-adds from which oneDNN gains: it prepares every product anew, and autograd enters Python for it.
LEAST = {ROWS: 2**25, ALL: 2**22}
FEWEST_ROWS, NARROWEST = 512, 32

_local = threading.local()  # .backend: of the innermost `by` in this thread


@functools.cache
def choose() -> str:
    """The choice for this machine, measured once per process (50 ms): one of `CHOICES`.

    Intel's own CPUs, CPUs without AVX-512 and builds of torch without either library keep MKL, unmeasured.
    """
    if not available() or _intel() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return MKL
    ratio = measured()
    return MKL if ratio < SLOWER else ALL if ratio >= MUCH_FASTER else ROWS


@functools.cache
def available() -> bool:
    """Whether this torch has both libraries and oneDNN's product, with and without a bias, is right."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    x, weight, bias = _probe_tensors()
    exact = x.double() @ weight.double().T
    try:
        with torch.no_grad():
            found = [(_onednn(x, weight), exact), (_onednn(x, weight.T.contiguous().T, bias), exact + bias)]
    except (AttributeError, RuntimeError, TypeError):  # an internal operator: it may go, or change its arguments
        return False
    return all(_difference(mine, right) <= TOLERANCE for mine, right in found)


def measured() -> float:
    """How many times as fast as MKL oneDNN is in a product of `PROBED`, by the CPU time of the best of some rounds."""
    x, weight, _ = _probe_tensors()
    with torch.no_grad():
        times = [(_seconds(lambda: F.linear(x, weight)), _seconds(lambda: _onednn(x, weight))) for _ in range(ROUNDS)]
    mkl, onednn = (min(column) for column in zip(*times, strict=True))
    return mkl / onednn


def resumed(before: str, begun: bool) -> str:
    """The choice for a run that starts or goes on: what it began with, so that it stays bit-equal.

    Args:
        before: what its state says, "" if nothing.
        begun: whether it has taken a step; a run that began before there was a choice began with MKL.

    Returns:
        The choice; where this machine cannot go on as before, both, such as "onednn+mkl".
    """
    if not before:
        return MKL if begun else choose()
    if before.split("+")[-1] in ON_GPU:
        return f"{before}+{choose()}"
    return before if before.split("+")[-1] == MKL or available() else f"{before}+{MKL}"


def resumed_on_gpu(before: str, begun: bool, precision: str) -> str:
    """`resumed` for a GPU: how products are computed under ``precision`` (of `Config`), one of `ON_GPU`.

    "auto" is TF32: autocast casts frozen weights at every use, and at these sizes that costs more than bf16 gains. A
    run that began when it was bf16, and did not say so, goes on in bf16.
    """
    if before.split("+")[-1] in ON_GPU:
        return before
    if not before and begun and precision == "auto":
        return BF16
    mine = precision if precision in (FLOAT32, BF16) else TF32
    return f"{before}+{mine}" if before else mine


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Inside, float32 products and convolutions on a GPU have TF32's 10 bits of mantissa, or all 23."""
    kinds = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = "tf32" if on else "ieee"
        yield
    finally:
        for kind, value in zip(kinds, before, strict=True):
            kind.fp32_precision = value


@contextmanager
def by(backend: str) -> Iterator[None]:
    """Inside, large float32 products of networks on the CPU, and their gradients, are computed as ``backend`` says.

    Contexts nest, the innermost counts; other threads are not touched.

    Raises:
        ValueError: ``backend`` (its part after the last "+") is not of `CHOICES`.
    """
    last = backend.split("+")[-1]
    if last not in CHOICES:
        raise ValueError(f"products by {last!r}: must be one of {', '.join(CHOICES)}.")
    before = _backend()
    _local.backend = last
    try:
        yield
    finally:
        _local.backend = before


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`: (..., in), (out, in), (out,) -> (..., out)."""
    backend = _backend()
    if backend == MKL or not _gains(backend, x.numel() // x.shape[-1], x, weight):
        return F.linear(x, weight, bias)
    return _linear(x, weight, bias, backend)


def times(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight``: (..., in), (in, out) -> (..., out)."""
    backend = _backend()
    if backend == MKL or not _gains(backend, x.numel() // x.shape[-1], x, weight):
        return x @ weight
    return _linear(x, weight.T, None, backend)


def batched(x: Tensor, weight: Tensor) -> Tensor:
    """`torch.bmm`: (E, rows, in), (E, in, out) -> (E, rows, out); gradients are MKL's."""
    backend = _backend()
    # where oneDNN is only a little faster, putting the parts together eats the gain
    if backend != ALL or not _gains(backend, x.shape[1], x, weight):
        return torch.bmm(x, weight)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return torch.bmm(x, weight)
    out = x.new_empty(len(x), x.shape[1], weight.shape[2])
    for mine, left, right in zip(out, x, weight, strict=True):
        mine.copy_(_onednn(left.contiguous(), right.T))
    return out


class _Linear(torch.autograd.Function):
    """A linear map by oneDNN, with its input's gradient; the weight's gradient is MKL's where that is faster."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, all_of_it: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.all_of_it = all_of_it
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        rows = gradient.flatten(0, -2)  # (rows, out)
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = _onednn(gradient, weight.T)
        if ctx.needs_input_grad[1]:
            inputs = x.flatten(0, -2)  # (rows, in)
            of_weight = _onednn(rows.T.contiguous(), inputs.T) if ctx.all_of_it else rows.T @ inputs
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0)
        return of_x, of_weight, of_bias, None


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, dense(weight), bias, "none", [], "")


def dense(weight: Tensor) -> Tensor:
    """A matrix as it is, or without the gaps between its rows or columns: with gaps oneDNN's product takes its
    reference kernel, 2,000 times as slow."""
    return weight if weight.is_contiguous() or weight.T.is_contiguous() else weight.contiguous()


def _backend() -> str:
    return getattr(_local, "backend", MKL)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return _Linear.apply(x, weight, bias, backend == ALL)
    return _onednn(x, weight, bias)


def _gains(backend: str, rows: int, x: Tensor, weight: Tensor) -> bool:
    *_, a, b = weight.shape
    if rows * a * b < LEAST[backend] or rows < FEWEST_ROWS or min(a, b) < NARROWEST:
        return False
    floats = x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu"
    return floats and not torch.is_autocast_enabled("cpu")


def _probe_tensors() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    rows, inner, columns = PROBED
    shapes = ((rows, inner), (columns, inner), (columns,))
    x, weight, bias = (torch.randn(*shape, generator=draw, dtype=torch.float32, device="cpu") for shape in shapes)
    return x, weight, bias


def _difference(mine: Tensor, exact: Tensor) -> float:
    return float((mine.double() - exact).abs().max() / exact.abs().max())


def _seconds(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def _intel() -> bool:
    """Whether Intel made this CPU; one of which nobody says that AMD made it is left to MKL as well."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        text = platform.processor()
    return "AuthenticAMD" not in text
