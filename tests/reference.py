"""The oracle: the paper's equations as plain loops in float64, image by image, expert by expert, query by query.

It shares nothing with `dne_lab.models` but the parameters of `dne_lab.models.expert`. Slow: for tiny networks.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

Vector = Any  # a NumPy array of float64
Tokens = list[Vector]  # one vector a position; a class token, where there is one, comes first


class Query(NamedTuple):
    """Whose row of a map this is: experts count from 1; heads (within the expert), images and positions from 0."""

    kind: str
    layer: int
    expert: int
    head: int
    image: int
    position: int


OnRow = Callable[[Query, Vector], Vector]  # sees every row of probabilities before it is used; what it returns is used


def as_computed(query: Query, row: Vector) -> Vector:
    """Uses every row as it is."""
    return row


class Result(NamedTuple):
    """``logits`` (B, classes); ``readouts`` one (B, C_t) an expert."""

    logits: Vector
    readouts: list[Vector]


def forward(model: Any, images: Tensor, on_row: OnRow = as_computed) -> Result:
    """The whole network for (B, C, H, W) uint8 images."""
    by_image = [image_readouts(model, image, number, on_row) for number, image in enumerate(array(images))]
    readouts = [np.stack([one[t] for one in by_image]) for t in range(len(model.experts))]
    logits = []
    for image in range(len(by_image)):
        total = array(model.classifier.bias)
        for readout, weight in zip(readouts, model.classifier.weights, strict=True):
            total = total + array(weight) @ readout[image]
        logits.append(total)
    return Result(np.stack(logits), readouts)


def array(tensor: Tensor) -> Vector:
    """A tensor as float64 NumPy."""
    return tensor.detach().cpu().double().numpy()


def image_readouts(model: Any, image: Vector, number: int, on_row: OnRow) -> list[Vector]:
    """One image (C, H, W), pixels 0 to 255 -> one read-out (C_t,) an expert."""
    tokens = image_layers(model, image, number, on_row)[1]
    return [layer_norm(e.norm, own[0]) for e, own in zip(model.experts, tokens, strict=True)]


def image_layers(model: Any, image: Vector, number: int, on_row: OnRow) -> "tuple[list[Layer], list[Tokens]]":
    """The blocks of one image after they have run, and the tokens after the last."""
    network = model.network
    cells = patches(model, image)
    tokens = [embed(expert, cells) for expert in model.experts]
    layers = []
    last = network.depth - 1
    for layer in range(network.depth):
        if layer == (0 if network.readout == "cls_token" else last):
            tokens = [[array(e.class_token), *own] for e, own in zip(model.experts, tokens, strict=True)]
        only_class = network.readout == "class_attention" and layer == last
        layers.append(Layer(model, layer, number, tokens, only_class, on_row))
        tokens = layers[-1].outputs()
    return layers, tokens


def patches(model: Any, image: Vector) -> list[Vector]:
    """The normalised patches in reading order, each as (channel, row, column) flattened."""
    side = model.network.patch
    _, height, width = image.shape
    cells = []
    for top in range(0, height, side):
        for left in range(0, width, side):
            values = []
            means, stds = array(model.mean).ravel(), array(model.std).ravel()
            for channel, (mean, std) in enumerate(zip(means, stds, strict=True)):
                for y in range(top, top + side):
                    for x in range(left, left + side):
                        values.append((image[channel, y, x] / 255 - mean) / std)
            cells.append(np.array(values))
    return cells


def embed(expert: Any, cells: list[Vector]) -> Tokens:
    """Patch embedding plus position embedding."""
    return [linear(expert.embed, cell) + place for cell, place in zip(cells, array(expert.position), strict=True)]


def linear(layer: Any, x: Vector) -> Vector:
    """A linear layer."""
    return array(layer.weight) @ x + array(layer.bias)


def layer_norm(norm: Any, x: Vector) -> Vector:
    """Layer normalisation of one vector."""
    centred = x - sum(x) / len(x)
    variance = sum(centred**2) / len(x)
    return centred / math.sqrt(variance + norm.eps) * array(norm.weight) + array(norm.bias)


def gelu(x: Vector) -> Vector:
    """x Phi(x), Phi the normal distribution function."""
    return np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])


def softmax(scores: Sequence[float]) -> Vector:
    """Softmax of a list."""
    weights = np.array([math.exp(s - max(scores)) for s in scores])
    return weights / sum(weights)


def row_of(variant: Any, scores: Sequence[float]) -> Vector:
    """Softmax at the variant's temperature, or at that at which the row has the variant's entropy (by bisection)."""
    if variant.entropy is None:
        return softmax([s / variant.temperature for s in scores])
    there = [s for s in scores if s > -math.inf]
    low, high = 1e-8, 1e8
    for _ in range(200):
        middle = math.sqrt(low * high)
        row = softmax([s / middle for s in there])
        entropy = -sum(a * math.log(a) for a in row if a > 0)
        low, high = (middle, high) if entropy < variant.entropy * math.log(len(there)) else (low, middle)
    return softmax([s / high if s > -math.inf else -math.inf for s in scores])


def experts_read(variant: Any, t: int) -> list[int]:
    """The experts (from 1) that expert t reads, itself last."""
    others = {"all": list(range(1, t)), "first": [1], "previous": [t - 1], "own": []}[variant.experts]
    return [*others, t] if t > 1 else [1]


def heads_of(x: Vector, heads: int) -> list[Vector]:
    """A token cut into its heads, eq. 16."""
    return [np.array(part) for part in np.split(x, heads)]


def position_row(weights: Vector, grid: tuple[int, int], query: int) -> Vector:
    """GPSA's softmax over all patches of w . (dx, dy, dx^2 + dy^2), offsets = key - query, for one query patch."""
    y0, x0 = divmod(query, grid[1])
    scores = []
    for key in range(grid[0] * grid[1]):
        y, x = divmod(key, grid[1])
        dx, dy = x - x0, y - y0
        scores.append(float(weights[0] * dx + weights[1] * dy + weights[2] * (dx**2 + dy**2)))
    return softmax(scores)


class Layer:
    """One block of all experts for one image; expert t reads only experts up to t."""

    def __init__(
        self, model: Any, number: int, image: int, tokens: list[Tokens], only_class: bool, on_row: OnRow
    ) -> None:
        self.model, self.number, self.image, self.on_row = model, number, image, on_row
        # Behind the last block only class tokens are read, and those look at content alone: it has no gates.
        self.gated = model.network.spatial == "gpsa" and number < model.network.depth - 1
        self.only_class = only_class  # class attention: the class token alone asks and is updated
        self.classes = len(tokens[0]) - model.grid[0] * model.grid[1]
        self.raw = tokens
        self.inputs: list[Tokens] = []  # what each expert's attention sees
        self.normed: list[list[list[Vector]]] = []  # LN(s): expert, position, head
        self.hidden: list[list[list[Vector]]] = []  # what feeds the second mixing: expert, position, head

    def outputs(self) -> list[Tokens]:
        """The tokens after the block, expert by expert."""
        return [self.expert(t) for t in range(1, len(self.raw) + 1)]

    def expert(self, t: int) -> Tokens:
        """Expert t: lateral map (eq. 11), attention (eq. 12), feature mixing (eq. 13, or 17-23), residuals."""
        expert, variant = self.model.experts[t - 1], self.model.variant
        w, heads = expert.blocks[self.number], expert.place.heads
        task1, task2 = (t > 1 and variant.mixes in ("task", name) for name in ("task1", "task2"))
        x = self.raw[t - 1]
        if t > 1 and variant.mixes == "linear":
            lateral = array(w.lateral)
            read = [self.raw[e - 1] for e in experts_read(variant, t)]
            x = [np.concatenate([own[p] for own in read]) @ lateral for p in range(len(x))]
        self.inputs.append(x)

        asking = range(1) if self.only_class else range(len(x))
        joint = t > 1 and variant.reads == "all"
        attention = self.joint_attention if joint else self.own_attention
        s = [x[p] + attended for p, attended in zip(asking, attention(t, w, list(asking)), strict=True)]

        self.normed.append([heads_of(layer_norm(w.norm2, token), heads) for token in s])
        if task1:
            first = [self.task_attention("task1", t, w.mix1, self.normed, p) for p in asking]
        else:
            first = [linear(w.mix1, layer_norm(w.norm2, token)) for token in s]
        o = [gelu(token) for token in first]
        if self.model.network.hidden_norm:
            o = [layer_norm(w.norm_hidden, token) for token in o]
        self.hidden.append([heads_of(token, heads) for token in o])
        if task2:
            second = [self.task_attention("task2", t, w.mix2, self.hidden, p) for p in asking]
        else:
            second = [linear(w.mix2, token) for token in o]
        return [a + b for a, b in zip(s, second, strict=True)]

    def row(self, kind: str, t: int, head: int, position: int, row: Vector) -> Vector:
        """Lets `on_row` see and replace a row of probabilities."""
        return self.on_row(Query(kind, self.number, t, head, self.image, position), row)

    def own_attention(self, t: int, w: Any, asking: list[int]) -> Tokens:
        """MHSA or GPSA over the expert's own tokens (eq. 12), or CaiT's class attention; before the residual."""
        heads = self.model.experts[t - 1].place.heads
        qkv = array(w.attention.qkv)
        u = [layer_norm(w.norm1, token) for token in self.inputs[t - 1]]
        q, k, v = ([heads_of(qkv[i] @ token, heads) for token in u] for i in range(3))
        gated = self.gated
        out = []
        for p in asking:
            parts = []
            for h in range(heads):
                width = len(q[p][h])
                scores = [float(q[p][h] @ k[other][h]) / math.sqrt(width) for other in range(len(u))]
                row = softmax(scores) if t == 1 or self.only_class else row_of(self.model.variant, scores)
                if gated and p >= self.classes:
                    gate = self.gate(w, h)
                    places = position_row(array(w.attention.position)[h], self.model.grid, p - self.classes)
                    for other in range(len(u)):
                        place = places[other - self.classes] if other >= self.classes else 0.0
                        row[other] = (1 - gate) * row[other] + gate * place
                row = self.row("class" if self.only_class else "spatial", t, h, p, row)
                total = np.zeros(width)
                for other in range(len(u)):
                    total = total + row[other] * v[other][h]
                parts.append(total)
            out.append(linear(w.attention.out, np.concatenate(parts)))
        return out

    @staticmethod
    def gate(w: Any, head: int) -> float:
        """A head's share of position attention."""
        return 1 / (1 + math.exp(-float(array(w.attention.gate)[head])))

    def joint_attention(self, t: int, w: Any, asking: list[int]) -> Tokens:
        """Spatial-task attention: one head's token is the unit, keys are the tokens of all heads of experts 1..t."""
        read = experts_read(self.model.variant, t)
        experts = [self.model.experts[e - 1] for e in read]
        qkv, heads = array(w.attention.qkv), experts[-1].place.heads
        units = []  # one list of normalised tokens for each of the H heads; the last ones are this expert's
        for expert, tokens in zip(experts, [self.inputs[e - 1] for e in read], strict=True):
            cut = [heads_of(token, expert.place.heads) for token in tokens]
            units += [[layer_norm(w.norm1, token[j]) for token in cut] for j in range(expert.place.heads)]
        keys = [[qkv[1] @ u for u in unit] for unit in units]
        values = [[qkv[2] @ u for u in unit] for unit in units]
        first = len(units) - heads
        out = []
        for p in asking:
            parts = []
            for h in range(heads):
                q = qkv[0] @ units[first + h][p]
                if self.only_class:
                    parts.append(self.class_of_all(t, h, first + h, q, keys, values))
                else:
                    parts.append(self.joint_row(t, w, h, p, q, keys, values, first + h))
            out.append(linear(w.attention.out, np.concatenate(parts)))
        return out

    def joint_row(self, t: int, w: Any, h: int, p: int, q: Vector, keys: Any, values: Any, own: int) -> Vector:
        """One query of spatial-task attention over (H heads) x (all positions); ``own``: its head among the H."""
        masked = self.model.variant.masked
        left = [
            [j == own or masked not in ("both", "SPDH" if other == p else "DPDH") for other in range(len(keys[j]))]
            for j in range(len(keys))
        ]
        scores = [
            float(q @ key) / math.sqrt(len(q)) if left[j][other] else -math.inf
            for j, unit in enumerate(keys)
            for other, key in enumerate(unit)
        ]
        row = row_of(self.model.variant, scores).reshape(len(keys), -1)
        if self.model.variant.mass == "ia":
            table = np.array(scores).reshape(len(keys), -1)
            share = softmax(list(table[own]))[p]
            other = [i for i in range(table.shape[1]) if i != p]
            row = np.zeros_like(table)
            row[:, p] = share * softmax(list(table[:, p]))
            row[:, other] = (1 - share) * softmax(list(table[:, other].ravel())).reshape(len(keys), -1)
        if self.gated and p >= self.classes:
            gate = self.gate(w, h)
            places = position_row(array(w.attention.position)[h], self.model.grid, p - self.classes)
            for j in range(len(keys)):
                for other in range(len(keys[j])):
                    split = sum(left[i][other] for i in range(len(keys)))
                    place = places[other - self.classes] / split if other >= self.classes and left[j][other] else 0.0
                    row[j, other] = (1 - gate) * row[j, other] + gate * place
        row = self.row("joint", t, h, p, row)
        total = np.zeros(len(q))
        for j in range(len(keys)):
            for other in range(len(keys[j])):
                total = total + row[j, other] * values[j][other]
        return total

    def class_of_all(self, t: int, h: int, own: int, q: Vector, keys: Any, values: Any) -> Vector:
        """One class query over its own head's class token, then every patch of head 0, of head 1, ..."""
        only = self.model.variant.masked in ("DPDH", "both")
        heads = [own] if only else range(len(keys))
        chosen = [(own, 0)] + [(j, other) for j in heads for other in range(1, len(keys[j]))]
        row = softmax([float(q @ keys[j][other]) / math.sqrt(len(q)) for j, other in chosen])
        row = self.row("class", t, h, 0, row)
        total = np.zeros(len(q))
        for weight, (j, other) in zip(row, chosen, strict=True):
            total = total + weight * values[j][other]
        return total

    def task_attention(self, kind: str, t: int, w: Any, sources: list[list[list[Vector]]], p: int) -> Vector:
        """One task attention block at one position, eq. 19-23: the H_t outputs side by side (before GELU)."""
        z = [unit for e in experts_read(self.model.variant, t) for unit in sources[e - 1][p]]  # z_j for all H heads
        heads = len(sources[t - 1][p])
        uniform = self.model.variant.weights == "uniform"
        w_v, b_v, scale = (array(m) for m in (w.w_v, w.b_v, w.scale))
        w_q, w_k = (None, None) if uniform else (array(w.w_q), array(w.w_k))
        out = []
        for i in range(heads):
            if uniform:
                row = np.full(len(z), 1 / len(z))
            else:
                q = z[len(z) - heads + i] @ w_q
                row = softmax([float(q @ (unit @ w_k)) / math.sqrt(len(unit)) for unit in z])
            row = self.row(kind, t, i, p, row)
            total = np.zeros(w_v.shape[2])
            for j, unit in enumerate(z):
                total = total + row[j] * (unit @ w_v[j] + b_v[j])
            out.append(scale[i] * total)
        return np.concatenate(out)
