"""What execute.py measures inside the kernel: how near a number is to another text, and the CPU seconds so far.

A test compares the texts of a notebook. A number that lies on the boundary between two texts (0.125 with two decimals)
may be printed as one on this machine and as the other on the next. So every rounding is watched: in the cells and in
``dne_lab``, ``x.round(n)``, ``round(x, n)`` and the formats of f-strings (``.2f``) are replaced, as the code is
compiled, by calls that do the same and keep the distance from the boundary, in units of the last digit printed (0.5 is
the most there can be).
"""

import ast
import builtins
import importlib.machinery
import json
import math
import re
import resource
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PACKAGE = "dne_lab"
_SPEC = re.compile(r"[^.]*(?:\.(\d+))?([fFeEgG%]?)$")
_seen: list[tuple[str | None, float]] = []  # the text (None: a table, shown somehow) and the distance of each rounding
_paused = 0  # while a picture is drawn: pictures are not compared


def margin(value: float, decimals: int) -> float:
    """Distance of a number from where it would be rounded otherwise, in units of its last digit: 0 to 0.5."""
    if not math.isfinite(value):
        return 0.5
    scaled = abs(value) * 10.0**decimals
    return abs(scaled - math.floor(scaled) - 0.5)


def formatted_margin(value: Any, spec: str) -> float | None:
    """`margin` of a number under an f-string's format; None where nothing is rounded (whole numbers, texts)."""
    found = _SPEC.fullmatch(spec)
    if found is None or isinstance(value, int | str):
        return None
    digits, kind = found[1], found[2].lower()
    if kind not in ("f", "e", "g", "%") and digits is None:
        return None
    number, places = float(value), int(digits or 6)
    if kind == "f":
        return margin(number, places)
    if kind == "%":
        return margin(number, places + 2)
    exponent = math.floor(math.log10(abs(number))) if number and math.isfinite(number) else 0
    return margin(number, (places if kind == "e" else max(1, places) - 1) - exponent)


# What takes the place of the code ---------------------------------------------------------------------------------


def _format(value: Any, spec: str) -> str:
    text = format(value, spec)
    found = formatted_margin(value, spec)
    if found is not None and not _paused:
        _seen.append((text.strip(" +-%"), found))
    return text


def _round(value: Any, *digits: Any) -> Any:
    rounded = round(value, *digits)
    if digits and isinstance(value, float) and not _paused:
        _seen.append((str(rounded).strip("-"), margin(value, digits[0])))
    return rounded


def _rounded(value: Any, *arguments: Any, **named: Any) -> Any:
    result = value.round(*arguments, **named)
    if not _paused:
        decimals = arguments[0] if arguments else named.get("decimals", 0)
        _seen.extend((None, found) for found in _margins(value, decimals))
    return result


def _margins(value: Any, decimals: Any) -> Iterable[float]:
    """Of every number in a table, series or array."""
    if hasattr(value, "columns"):
        for place, name in enumerate(value.columns):
            digits = decimals.get(name) if isinstance(decimals, dict) else decimals
            if digits is not None:
                yield from _margins(value.iloc[:, place], digits)
    elif getattr(getattr(value, "dtype", None), "kind", "") == "f" and getattr(value, "size", 0):
        import numpy as np

        yield from (margin(float(number), decimals) for number in np.asarray(value, dtype=float).ravel())


class Watched(ast.NodeTransformer):
    """Puts `_format`, `_round` and `_rounded` in the place of what rounds."""

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.AST:
        self.generic_visit(node)
        if node.format_spec is None or node.conversion != -1:
            return node
        call = ast.Call(ast.Name("__watched_format__", ast.Load()), [node.value, node.format_spec], [])
        return ast.copy_location(ast.FormattedValue(call, -1, None), node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "round":
            name, given = "__watched_rounded__", [node.func.value, *node.args]
        elif isinstance(node.func, ast.Name) and node.func.id == "round":
            name, given = "__watched_round__", node.args
        else:
            return node
        return ast.copy_location(ast.Call(ast.Name(name, ast.Load()), given, node.keywords), node)

    def visit_Module(self, node: ast.Module) -> ast.AST:
        return ast.fix_missing_locations(self.generic_visit(node))


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles a module with its roundings watched; no compiled copy is read or kept."""

    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        return compile(Watched().visit(ast.parse(self.get_data(path))), path, "exec", dont_inherit=True)

    def exec_module(self, module: Any) -> None:
        super().exec_module(module)
        if module.__name__ == f"{PACKAGE}.plots.figure":
            for name in ("image", "interactive"):
                setattr(module.Figure, name, _unwatched(getattr(module.Figure, name)))


def _unwatched(draw: Any) -> Any:
    def drawn(*arguments: Any, **named: Any) -> Any:
        global _paused
        _paused += 1
        try:
            return draw(*arguments, **named)
        finally:
            _paused -= 1

    return drawn


class _Finder:
    """Finds the package's modules as Python does, and gives them `_Loader`."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] != PACKAGE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def cpu_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def install(shell: Any, file: str) -> None:
    """From now on each cell that runs in ``shell`` adds a line to ``file``: CPU seconds, texts and distances."""
    builtins.__watched_format__, builtins.__watched_round__ = _format, _round  # type: ignore[attr-defined]
    builtins.__watched_rounded__ = _rounded  # type: ignore[attr-defined]
    sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type]
    shell.ast_transformers.append(Watched())

    def begin(*_: Any) -> None:
        _seen.clear()

    def end(*_: Any) -> None:
        with Path(file).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"cpu": cpu_seconds(), "seen": _seen}) + "\n")

    shell.events.register("pre_run_cell", begin)
    shell.events.register("post_run_cell", end)


def smallest(seen: Iterable[tuple[str | None, float]], text: str) -> float:
    """The smallest distance of the numbers that ``text``, the output of a cell, shows; 0.5 where nothing is rounded.

    A number that was formatted counts if it stands in the text as a whole, one in a table that was rounded always.
    """
    shown = [d for words, d in seen if words is None or re.search(rf"(?<![\d.]){re.escape(words)}(?![\d]|\.\d)", text)]
    return min([0.5, *shown])
