"""Ways of making something malformed out of what is right: values swapped, bytes flipped, files cut, schemas stretched.

Everything is drawn from a `random.Random` or by hypothesis, so that a number stands for an input.
"""

import copy
import io
import json
import random
import struct
import zipfile
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import safetensors.torch
from hypothesis import strategies as st

from dne_lab.commands.arguments import SCHEMAS
from dne_lab.core.schema import json_schema
from dne_lab.core.sealing import SEAL

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3.5, -0.0, 1e300, 10**18, -(10**18), 10**400, float("nan"), float("inf"), "", "x",
    "1", "nan", "none", "../../x", "\x00", "\u202e", "é" * 300, "a" * 5000, [], {}, [[]], [None], {"a": 1}, [1, 2, 3],
    ["x"], [[1.0], [1.0, 2.0]], {"": None}, "[", "12,1", "0-99999999999", "1e999", 2**63, 0.1, 101, "\ud7ff",
]  # fmt: skip


# Changes --------------------------------------------------------------------------------------------------------------


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something lies within nested dictionaries and lists."""
    yield path
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inside:
        yield from places(value, (*path, key))


def changed(tree: Any, draw: random.Random) -> Any:
    """A copy of a tree with one to three entries swapped, left out, doubled or added."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        # a place level by level, so that the few top fields are met as often as the many numbers of a table
        node, key = None, None
        at = tree
        while isinstance(at, dict | list) and at and (node is None or draw.random() < 0.6):
            node, key = at, draw.choice(list(at) if isinstance(at, dict) else range(len(at)))
            at = node[key]
        if node is None:
            return draw.choice(ODD)
        what = draw.choice(["swap", "swap", "swap", "drop", "add", "twice"])
        if what == "swap":
            node[key] = copy.deepcopy(draw.choice(ODD))
        elif what == "drop":
            del node[key]
        elif what == "add" and isinstance(node, dict):
            node[draw.choice(["x", "", "epochss", "__class__", "a" * 300])] = draw.choice(ODD)
        elif isinstance(node, list):
            node.insert(key, copy.deepcopy(node[key]))
    return tree


def spoilt(data: bytes, draw: random.Random) -> bytes:
    """Bytes cut, flipped, overwritten, repeated, or others in their place."""
    at = draw.randrange(len(data)) if data else 0
    what = draw.choice(["cut", "flip", "flips", "zeros", "twice", "foreign", "mark", "insert"])
    if what == "cut":
        return data[:at]
    if what in ("flip", "flips"):
        some = bytearray(data)
        for _ in range(1 if what == "flip" else 30):
            if some:
                some[draw.randrange(len(some))] ^= 1 << draw.randrange(8)
        return bytes(some)
    if what == "zeros":
        return data[:at] + bytes(min(64, len(data) - at)) + data[at + 64 :]
    if what == "insert":
        return data[:at] + draw.randbytes(draw.randrange(1, 40)) + data[at:]
    if what == "mark":
        return b"\xef\xbb\xbf" + data
    return data * 2 if what == "twice" else draw.choice(FOREIGN)


FOREIGN = [
    b"", b"\x00", b"\xff\xfe{\x00", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 100_000, b"NaN", b"[1e999]",
    b'"' + b"a" * 1000,
    b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x93NUMPY", b"{}", b"[]", b"null", b"{\n// ours\n}", b'"\\ud800"',
    struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 2) + b"{}", b"task,stage\n" + b"x" * 200_000, b"\r\n,,,\n" * 50,
]  # fmt: skip


def written(tree: Any, draw: random.Random) -> bytes:
    """A changed tree as a file, or its file spoilt."""
    if draw.random() < 0.3:
        return spoilt(json.dumps(tree, indent=1).encode(), draw)
    return json.dumps(changed(tree, draw), indent=1).encode("utf-8", "surrogatepass")


# Schemas --------------------------------------------------------------------------------------------------------------

EXTREME = st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=3)
SIZES = (1_000, 30_000)  # entries of a list that is blown up


def of_schema(schema: dict[str, Any], defs: dict[str, Any], depth: int = 0) -> st.SearchStrategy[Any]:
    """Values that fit a JSON Schema, at its limits and beyond: types are swapped and lists blown up now and then."""
    found = _fitting(schema, defs, depth)
    blown = st.tuples(found, st.sampled_from(SIZES)).map(lambda pair: [pair[0]] * pair[1])
    return st.one_of(*[found] * 8, EXTREME, blown) if depth == 1 else st.one_of(*[found] * 12, EXTREME)


def _fitting(schema: dict[str, Any], defs: dict[str, Any], depth: int) -> st.SearchStrategy[Any]:
    if "$ref" in schema:
        return _fitting(defs[schema["$ref"].rpartition("/")[2]], defs, depth)
    if "anyOf" in schema:
        return st.one_of([_fitting(one, defs, depth) for one in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind, deep = schema.get("type"), depth + 1
    if kind == "integer":
        low, high = schema.get("minimum", -(10**30)), schema.get("maximum", 10**30)
        return st.integers(low, high) | st.sampled_from([low, high, max(low, min(high, 1))])
    if kind == "number":
        low, high = schema.get("minimum", -(10.0**30)), schema.get("maximum", 10.0**30)
        return st.floats(low, high) | st.sampled_from([low, high])
    if kind == "string":
        return st.text(max_size=min(schema.get("maxLength", 30), 30)) | st.just("a" * schema.get("maxLength", 999))
    if kind == "boolean":
        return st.booleans()
    if kind == "null":
        return st.none()
    if kind == "array":
        if "prefixItems" in schema:
            return st.tuples(*[of_schema(one, defs, deep) for one in schema["prefixItems"]]).map(list)
        least = schema.get("minItems", 0)
        items = of_schema(schema["items"], defs, deep) if schema.get("items") else EXTREME
        return st.lists(items, min_size=least, max_size=least + 3)
    if kind == "object" and "properties" in schema:
        each = {name: of_schema(one, defs, deep) for name, one in schema["properties"].items()}
        return st.fixed_dictionaries({}, optional=each)
    if kind == "object":
        more = schema.get("additionalProperties")
        return st.dictionaries(st.text(max_size=9), of_schema(more, defs, deep) if isinstance(more, dict) else EXTREME)
    return EXTREME  # whatever the schema takes


def trees_of(kind: str, right: Any) -> st.SearchStrategy[Any]:
    """Contents of a file of a kind (see ``dne-lab schema``): a right one with some fields as its schema has them, or
    others; now and then all of them."""
    module, _, name = SCHEMAS[kind].partition(":")
    schema = json_schema(getattr(import_module(f"dne_lab.{module}"), name))
    defs = schema.get("$defs", {})
    whole = of_schema(schema, defs)
    if isinstance(right, list):
        fields = schema["items"]
        fields = defs[fields["$ref"].rpartition("/")[2]] if "$ref" in fields else fields
        return whole | st.lists(_with_fields(right[0], fields, defs), min_size=1, max_size=3)
    return st.one_of(whole, *[_with_fields(right, schema, defs)] * 5)


def _with_fields(right: dict[str, Any], schema: dict[str, Any], defs: dict[str, Any]) -> st.SearchStrategy[Any]:
    each = {name: of_schema(one, defs, 1) for name, one in schema["properties"].items()}
    chosen = st.sets(st.sampled_from(sorted(each)), min_size=1, max_size=3)
    made = chosen.flatmap(lambda names: st.fixed_dictionaries({name: each[name] for name in sorted(names)}))
    return made.map(lambda changes: right | changes)


def without_seals(tree: Any) -> Any:
    """A tree as older files hold it, whose fields are all there is to check."""
    if not isinstance(tree, dict):
        return tree
    left = {name: value for name, value in tree.items() if name != SEAL and not name.endswith("s_sha256")}
    return {**left, "task_sha256": [], "timing": without_seals(left["timing"])} if "timing" in left else left


def unsealed_tensors(data: bytes) -> bytes:
    """A safetensors file of ours as older versions wrote it, without a digest."""
    length = struct.unpack("<Q", data[:8])[0]
    ours = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["dne-lab"])
    ours.pop(SEAL, None)
    ours.get("state", {}).pop("task_sha256", None)
    if "record" in ours:
        ours["record"] = without_seals(ours["record"])
    return safetensors.torch.save(safetensors.torch.load(data), metadata={"dne-lab": json.dumps(ours)})


def other_tensors(data: bytes, draw: random.Random) -> bytes:
    """A safetensors file of ours with a tensor of another shape or type, without one, or with one more."""
    length = struct.unpack("<Q", data[:8])[0]
    ours = json.loads(data[8 : 8 + length])["__metadata__"]
    tensors = safetensors.torch.load(data)
    name = draw.choice(sorted(tensors))
    one = tensors[name]
    tensors[name] = draw.choice([one[None], one.reshape(-1), one.double(), one.half(), one.flatten()[:0], one.T * 0])
    if draw.random() < 0.3:
        del tensors[name]
    if draw.random() < 0.2:
        tensors["x" * draw.randrange(300)] = one.clone()
    return safetensors.torch.save({n: t.contiguous().clone() for n, t in tensors.items()}, metadata=ours)


def with_header(data: bytes, draw: random.Random) -> bytes:
    """A safetensors file whose JSON of ours is changed."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    ours = json.loads(header["__metadata__"]["dne-lab"])
    header["__metadata__"]["dne-lab"] = json.dumps(changed(ours, draw))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def repacked(data: bytes, draw: random.Random) -> bytes:
    """An archive with a file changed, left out, or added."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        hit = draw.choice(old.namelist())
        for name in old.namelist():
            content = old.read(name)
            if name == hit:
                if draw.random() < 0.2:
                    continue
                content = written(json.loads(content), draw) if name.endswith(".json") else spoilt(content, draw)
            new.writestr(name, content)
        if draw.random() < 0.1:
            new.writestr(draw.choice(["../x", "/tmp/x", "x.txt", "a" * 300]), b"x")
    return out.getvalue()
