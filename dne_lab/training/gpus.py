"""Which GPU a run goes to: the one with the most free memory. Asked of the driver's own program, nvidia-smi, because a
process that asks CUDA holds some hundred megabytes of every GPU from then on."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

MARGIN = 1.1  # a run may take that much more than the largest so far
CONTEXT = 600_000_000  # bytes that a process holds of a GPU beside its tensors: kernels, and the libraries' workspaces
_ASK = ["nvidia-smi", "--query-gpu=uuid,name,memory.free", "--format=csv,noheader,nounits"]


@dataclass(frozen=True)
class Gpu:
    """A GPU by the name that ``CUDA_VISIBLE_DEVICES`` takes, and its free bytes when it was asked."""

    uuid: str
    free: int


def visible(index: int | None = None) -> list[Gpu]:
    """The GPUs that this process may use, in CUDA's order, or the one of a number among them.

    None where that is not known: no nvidia-smi, parts of GPUs (MIG), or numbers that may mean another GPU to CUDA than
    to nvidia-smi (GPUs of several kinds without ``CUDA_DEVICE_ORDER=PCI_BUS_ID``).
    """
    try:
        told = subprocess.run(_ASK, capture_output=True, text=True, timeout=20, check=True).stdout
        rows = [[word.strip() for word in line.split(",")] for line in told.splitlines() if line.strip()]
        there = [Gpu(uuid, int(free) * 2**20) for uuid, _, free in rows]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
    same = len({name for _, name, _ in rows}) == 1 or os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    found = _allowed(there, same)
    if index is None or not found:
        return found
    return found[index : index + 1] if index >= 0 else []


def _allowed(there: list[Gpu], numbered_alike: bool) -> list[Gpu]:
    """Those that ``CUDA_VISIBLE_DEVICES`` leaves; CUDA reads it up to the first that is not there."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return there if numbered_alike else []
    found: list[Gpu] = []
    for word in (part.strip() for part in given.split(",")):
        if word.isdigit():
            if not numbered_alike:
                return []
            fitting = there[int(word) : int(word) + 1]
        else:
            fitting = [gpu for gpu in there if word.startswith("GPU-") and gpu.uuid.startswith(word)]
        if len(fitting) != 1:
            break
        found += fitting
    return found


@dataclass(frozen=True)
class Placed:
    """A run on a GPU: its peak of bytes so far (0: it has told nothing yet)."""

    uuid: str
    peak: int = 0


def best(there: Sequence[Gpu], placed: Sequence[Placed], largest: int) -> Gpu | None:
    """Where one more run fits best, after those that run have grown to the largest; None: nowhere now.

    ``largest``: bytes that a run takes at most, as far as is known; 0: not known, then a GPU takes one run alone.
    """

    def left(gpu: Gpu) -> float:
        mine = [one for one in placed if one.uuid == gpu.uuid]
        if not largest:
            return -1 if mine else gpu.free
        return gpu.free - sum(max(0, largest - one.peak) for one in mine) - MARGIN * largest

    empty = {gpu.uuid for gpu in there} - {one.uuid for one in placed}
    fitting = [gpu for gpu in there if gpu.uuid in empty or left(gpu) >= 0]
    return max(fitting, key=left, default=None)
