"""A checkpoint is one safetensors file whose header carries the rest as JSON. Nothing is unpickled."""

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dne_lab.errors import LabError
from dne_lab.files import write_bytes

FORMAT, VERSION = "dne-lab", 1


def save(path: Path, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
    """Writes tensors and JSON-able ``info`` as one file, by one rename.

    Raises:
        WriteError: the file cannot be written; an older one is untouched.
    """
    header = {FORMAT: json.dumps({"version": VERSION, **info}, allow_nan=False)}
    # Copies: safetensors refuses tensors that share memory.
    form = torch.contiguous_format
    whole = {name: t.detach().to("cpu", copy=True, memory_format=form) for name, t in tensors.items()}
    write_bytes(path, safetensors.torch.save(whole, metadata=header))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save` wrote, on the CPU.

    Raises:
        LabError: missing, truncated, foreign, or from another version. The file is untouched.
    """
    advice = "The file is untouched. Move it away to train that part again, or bring back a copy of it."
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if FORMAT not in metadata:
                raise LabError(f"{path} was not written by this program. {advice}")
            info = json.loads(metadata[FORMAT])
            if info.get("version") != VERSION:
                raise LabError(
                    f"{path} has version {info.get('version')}, this program reads version {VERSION}. "
                    "The file is untouched. Use the program that wrote it, or give another folder."
                )
            # Copies: the tensors of an open file are a mapping of it, and would change when it does.
            return {name: file.get_tensor(name).clone() for name in file.keys()}, info  # noqa: SIM118
    except FileNotFoundError:
        raise LabError(f"{path} does not exist.") from None
    except OSError as error:
        raise LabError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (safetensors.SafetensorError, UnicodeDecodeError, json.JSONDecodeError, AttributeError) as error:
        raise LabError(f"{path} is truncated or damaged, or no checkpoint ({error}). {advice}") from error
