"""Names in backticks, in docstrings and in the package's READMEs, are names of something that exists."""

import ast
import functools
import importlib
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import dne_lab
from dne_lab.core.config import Config
from dne_lab.training.run import Run

HOME = Path(dne_lab.__file__).parent
MODULES = {".".join(path.relative_to(HOME).with_suffix("").parts): path for path in HOME.rglob("*.py")}
DEFINED = ast.ClassDef | ast.FunctionDef

DOTTED = re.compile(r"(?<![`\w])`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?:\(\))?`(?!`)")
FILE = re.compile(r"`((?:\w+/)*\w+\.py)`")
SUFFIXES = {"csv", "json", "npz", "py", "safetensors"}  # `record.json` is a file
FOREIGN = {
    "torchrun",
    "scancel",
    "tmux",
    "sha256sum",
    "VisionTransformer",
    "dynamic_img_size",
    "with",
    "TRACKIO_SPACE_ID",
}  # of others, said without their package


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    """A module's syntax tree, the module first."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@functools.cache
def written_in(path: Path) -> frozenset[str]:
    """All identifiers of a module's code, and its string constants: columns, options, keys."""
    found = set()
    for node in nodes(path):
        for field in ("id", "attr", "arg", "name", "asname", "module"):
            found.update(str(getattr(node, field, "")).split("."))
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return frozenset(found)


@functools.cache
def written_anywhere() -> frozenset[str]:
    return frozenset().union(*map(written_in, MODULES.values()))


@functools.cache
def homes() -> dict[str, list[str]]:
    """Each class and function, whose name needs no module then: the modules that define it."""
    found: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in nodes(path):
            if isinstance(node, DEFINED):
                found.setdefault(node.name, []).append(module)
    return found


@functools.cache
def modules_called(name: str) -> list[str]:
    """The package's modules whose dotted name ends so, e.g. `block`, `models.block`, `dne_lab.models.block`."""
    called = {module: module.removesuffix(".__init__") for module in MODULES}
    return [m for m, dotted in called.items() if f".dne_lab.{dotted}".endswith(f".{name}")]


def load(module: str) -> ModuleType:
    return importlib.import_module(f"dne_lab.{module}".removesuffix(".__init__").removesuffix(".__main__"))


@functools.cache
def of_instances(cls: type) -> frozenset[str]:
    """Fields, and what methods assign to ``self``."""
    found = set()
    for part in cls.__mro__:
        found.update(getattr(part, "__annotations__", {}))
        path = MODULES.get(part.__module__.removeprefix("dne_lab."))
        bodies = [n for n in (nodes(path) if path else []) if isinstance(n, ast.ClassDef) and n.name == part.__name__]
        found.update(n.attr for body in bodies for n in ast.walk(body) if isinstance(n, ast.Attribute))
    return frozenset(found)


def reaches(start: object, names: list[str]) -> bool:
    """Whether attributes called ``names`` lead on from ``start``; an attribute of instances ends the search."""
    for name in names:
        if not hasattr(start, name):
            return isinstance(start, type) and name in of_instances(start)
        start = getattr(start, name)
    return True


def starts(parts: list[str], here: str | None) -> Iterator[tuple[object, list[str]]]:
    """Where a dotted name may begin, and the attributes that are left."""
    for cut in range(len(parts) - 1, 0, -1):
        yield from ((load(module), parts[cut:]) for module in modules_called(".".join(parts[:cut])))
    first, rest = parts[0], parts[1:]
    yield from ((value, rest) for value in [vars(load(here)).get(first)] if value is not None) if here else ()
    yield from ((vars(load(m))[first], rest) for m in homes().get(first, []) if first in vars(load(m)))
    known = {"lab": dne_lab, "run": Run, "torch": importlib.import_module("torch")}
    yield from [(known[first], rest)] if first in known else []


def exists(name: str, here: str | None = None) -> bool:
    """Whether something is called so, as read in a module's docstring (``here``) or in a README (None)."""
    parts = name.split(".")
    if name in FOREIGN or parts[-1] in SUFFIXES or modules_called(name):
        return True
    if len(parts) == 1:
        return name in homes() or name in (written_in(MODULES[here]) if here else written_anywhere())
    return any(reaches(start, names) for start, names in starts(parts, here))


def is_setting(name: str) -> bool:
    """`data.path`; or `later.FIELD`, which stands for several."""
    group, field = name.split(".") if name.count(".") == 1 else ("", "")
    groups = {f.name: f.type for f in fields(Config)}
    return field == "FIELD" or (group in groups and field in of_instances(type(getattr(Config(), group))))


def test_names_in_docstrings_exist():
    wrong = set()
    for module, path in MODULES.items():
        for node in (n for n in nodes(path) if isinstance(n, ast.Module | DEFINED)):
            text = ast.get_docstring(node, clean=False) or ""
            wrong.update(f"{module}: {name}" for name in DOTTED.findall(text) if not exists(name, module))
    assert not wrong


def test_names_in_readmes_exist():
    wrong, classes = set(), {name for name in homes() if name[0].isupper()}
    for path in HOME.rglob("README.md"):
        text = path.read_text(encoding="utf-8")
        where = path.relative_to(HOME)
        for name in DOTTED.findall(text):
            first = name.split(".")[0]
            ours = "." not in name or modules_called(first) or first in classes or first in ("lab", "run")
            if ours and not is_setting(name) and not exists(name):
                wrong.add(f"{where}: {name}")
        homes_of_files = [path.parent, HOME, HOME.parent]
        wrong.update(f"{where}: {f}" for f in FILE.findall(text) if not any((h / f).exists() for h in homes_of_files))
    assert not wrong


def test_a_wrong_name_is_found():
    assert exists("ExpertBlock.lateral") and exists("models.block.Block.forward")
    assert not exists("models.spatial.SpatialAttention")
    assert not exists("measure.complexity", "plots.cost_figures")
    assert not exists("Again", "analysis.sweep")
