"""The attention of a vision transformer of another library for one image: rows by name, rollout, spread, distance."""

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dne_lab.analysis.hosts import find_host
from dne_lab.analysis.probe import evaluating, probe
from dne_lab.core.errors import LabError

if TYPE_CHECKING:
    import pandas as pd

Values = NDArray[np.float64]
Weights = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class TokenView:
    """All attention of one image; T tokens are those of ``prefix`` and then the patches, row by row.

    Attributes:
        weights: (H, T, T) of each layer; rows sum to 1.
        prefix: names of the tokens before the patches, such as "class token" and "register 1".
        grid: (rows, columns) of patches.
        logits: (classes,), or None where the network gives none.
    """

    weights: tuple[Weights, ...]
    prefix: tuple[str, ...]
    grid: tuple[int, int]
    logits: Tensor | None

    @property
    def patches(self) -> int:
        """The number of patches."""
        return self.grid[0] * self.grid[1]

    def token(self, query: int | str) -> int:
        """The place of a patch, or of a token by its name.

        Raises:
            LabError: if there is no such one.
        """
        if isinstance(query, str):
            if query not in self.prefix:
                raise LabError(f"token {query!r}: this network has {', '.join(self.prefix) or 'patches alone'}.")
            return self.prefix.index(query)
        if not 0 <= query < self.patches:
            raise LabError(f"patch {query}: this image has patches 0 to {self.patches - 1}.")
        return len(self.prefix) + query

    def rows(self, layer: int, query: int | str) -> Values:
        """(H, T) what one token attends to, in each head of a layer."""
        return self.weights[layer][:, self.token(query)].astype(np.float64)

    def rollout(self, layer: int) -> Values:
        """(T, T) attention rollout from a layer's output down to the input tokens.

        The product of (mean over heads + identity) / 2 of all layers up to it; Abnar and Zuidema (2020), section 3.
        """
        product = np.eye(self.weights[0].shape[-1])
        for weights in self.weights[: layer + 1]:
            product = (weights.mean(0, dtype=np.float64) + np.eye(len(product))) / 2 @ product
        return product

    def structure(self) -> dict[tuple[int, int], Values]:
        """(N,) how far each patch's row is from uniform, 1 - entropy / log T, by (layer, head)."""
        found: dict[tuple[int, int], Values] = {}
        for layer, weights in enumerate(self.weights):
            rows = weights[:, len(self.prefix) :].astype(np.float64)
            far = 1 - _entropy(rows) / np.log(max(rows.shape[-1], 2))
            found |= {(layer, head): far[head] for head in range(len(rows))}
        return found

    def summary(self, layer: int, query: int | str) -> "pd.DataFrame":
        """A row for each head: effective keys, mean distance, and the attention to each token that is no patch.

        Effective keys = exp(entropy) of the row, from 1 to T. The distance, in patches, is the mean over the attention
        to patches; NaN for a query that is no patch, as it is nowhere.
        """
        import pandas as pd

        rows, first = self.rows(layer, query), len(self.prefix)
        table = {"head": np.arange(len(rows)), "effective keys": np.exp(_entropy(rows)), "keys": rows.shape[1]}
        table["distance"] = np.full(len(rows), np.nan)
        if not isinstance(query, str):
            place = np.arange(self.patches)
            at = np.hypot(place // self.grid[1] - query // self.grid[1], place % self.grid[1] - query % self.grid[1])
            mass = rows[:, first:].sum(1)
            table["distance"] = rows[:, first:] @ at / np.where(mass > 0, mass, np.nan)
        table["patches %"] = 100 * rows[:, first:].sum(1)
        for number, name in enumerate(self.prefix):
            table[f"{name} %"] = 100 * rows[:, number]
        return pd.DataFrame(table)

    def uniform(self, query: int | str) -> "dict[str, Any]":
        """What the columns of `summary` would be if the query attended to all tokens alike."""
        tokens, away = len(self.prefix) + self.patches, np.nan
        if not isinstance(query, str):
            place = np.arange(self.patches)
            rows, columns = place // self.grid[1] - query // self.grid[1], place % self.grid[1] - query % self.grid[1]
            away = float(np.hypot(rows, columns).mean())
        row = {"head": "uniform", "effective keys": float(tokens), "keys": tokens, "distance": away}
        row["patches %"] = 100 * self.patches / tokens
        return row | {f"{name} %": 100 / tokens for name in self.prefix}

    def keys(self, layer: int, query: int | str) -> "pd.DataFrame":
        """A row for each key: its name, row and column (-1 for what is no patch), attention of each head, rollout."""
        import pandas as pd

        place = np.arange(self.patches)
        away = np.full(len(self.prefix), -1)
        table: dict[str, Any] = {
            "key": [*self.prefix, *(f"patch {number}" for number in place)],
            "row": np.concatenate([away, place // self.grid[1]]),
            "column": np.concatenate([away, place % self.grid[1]]),
        }
        rows = self.rows(layer, query)
        table |= {f"head {head}": row for head, row in enumerate(rows)}
        return pd.DataFrame(table | {"mean": rows.mean(0), "rollout": self.rollout(layer)[self.token(query)]})


def _entropy(rows: Values) -> Values:
    """(..., keys) -> (...) in nats."""
    return -(rows * np.log(np.where(rows > 0, rows, 1))).sum(-1)


def read_tokens(model: nn.Module, image: Tensor) -> TokenView:
    """The attention of every layer for one image.

    Args:
        model: of timm, torchvision or transformers; see `dne_lab.analysis.probe.probe`.
        image: (C, H, W) floats, normalised as the model was made for.

    Raises:
        LabError: see `dne_lab.analysis.probe.probe`.
    """
    host: Any = find_host(model)
    # Of two towers the text is not asked for.
    call = host.network if "input_ids" in inspect.signature(model.forward).parameters else model
    with evaluating(model) as device, probe(call) as maps:
        kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        output = call(image[None].to(device, kind))
    logits = output if isinstance(output, Tensor) else output.get("logits") if hasattr(output, "get") else None
    if logits is None or logits.dim() != 2 or getattr(model, "num_classes", 1) == 0:
        logits = None
    weights = tuple(found.numpy()[0] for found in maps)
    return TokenView(
        weights,
        tuple(host.prefix(maps[0].axes.classes)),
        maps[0].axes.grid,
        None if logits is None else logits[0].float().cpu(),
    )
