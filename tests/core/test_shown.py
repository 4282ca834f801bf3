"""Who shows what: found by class, for subclasses too, and an error that says what is missing."""

import sys
from types import ModuleType
from typing import Any

import pytest

from dne_lab.core import shown
from dne_lab.core.errors import LabError


class Found:
    """Something that can be drawn."""


class FoundMore(Found):
    """A subclass, not registered."""


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Found` is drawn by a module that exists, and watched by one that needs a library that does not."""
    module = ModuleType("drawings_of_found")

    def drawn(thing: Found, *words: str) -> tuple[Any, ...]:
        return type(thing).__name__, *words

    vars(module)["drawn"] = drawn
    monkeypatch.setitem(sys.modules, "drawings_of_found", module)
    monkeypatch.setattr(shown, "_TABLE", {})
    shown.register(f"{__name__}.Found", "plot", "drawings_of_found", "drawn")
    shown.register(f"{__name__}.Found", "watch", "library_that_nobody_has", "watched", "a library")


@pytest.mark.usefixtures("drawings")
def test_a_class_and_its_subclasses_are_shown_by_what_was_registered() -> None:
    assert shown.show(Found(), "plot", "images") == ("Found", "images")
    assert shown.show(FoundMore(), "plot") == ("FoundMore",)
    shown.register(f"{__name__}.FoundMore", "plot", "builtins", "repr")
    assert "FoundMore object" in shown.show(FoundMore(), "plot")


@pytest.mark.usefixtures("drawings")
def test_what_cannot_be_shown_says_what_to_do() -> None:
    with pytest.raises(LabError, match=r"int.*dne_lab\.core\.shown"):
        shown.show(3, "plot")
    with pytest.raises(LabError, match=r"a library .*library_that_nobody_has.*found\.table\(\)"):
        shown.show(Found(), "watch", instead="found.table()")


def test_everything_that_the_package_registers_is_there() -> None:
    from importlib import import_module

    import dne_lab  # noqa: F401  (registers)

    for (name, verb), (module, function, _) in shown._TABLE.items():
        cls = getattr(import_module(name.rpartition(".")[0]), name.rpartition(".")[2])
        assert callable(getattr(import_module(module), function)), name
        assert verb in ("plot", "watch") and (hasattr(cls, verb) or name == "dne_lab.measure.record.Record")
