"""How something is drawn or watched: a table that the top of the house fills, and those below it ask.

A run and what an analysis found have `plot` and `watch`, but know nothing of figures and widgets. They call `show`; who
answers is registered by name (`dne_lab/__init__.py` does it) and imported when it is first asked for. A class of your
own takes part in the same way:

    shown.register("my_module.Found", "plot", "my_module.drawings", "found_figure")

Subclasses are shown as their class is, unless they are registered themselves.
"""

from importlib import import_module
from typing import Any, NamedTuple

from dne_lab.core.errors import LabError

PLOTTING = "matplotlib, seaborn and plotly"


class _Function(NamedTuple):
    module: str
    name: str
    needs: str


_TABLE: dict[tuple[str, str], _Function] = {}


def register(shown: str, verb: str, module: str, function: str, needs: str = PLOTTING) -> None:
    """Says who shows a class.

    Args:
        shown: the class by its full name, "dne_lab.training.run.Run". It need not be imported yet.
        verb: what is asked for: "plot", "watch".
        module, function: what is called with the object; the module is imported only then.
        needs: the libraries that it imports, for the error where one is missing.
    """
    _TABLE[shown, verb] = _Function(module, function, needs)


def show(subject: object, verb: str, *arguments: Any, instead: str = "") -> Any:
    """What the registered function returns for ``subject`` and the arguments.

    Args:
        instead: what to look at where a library for showing is not installed, for the error.

    Raises:
        LabError: nobody shows this class in this way; a library that is needed for it is missing.
    """
    for cls in type(subject).__mro__:
        found = _TABLE.get((f"{cls.__module__}.{cls.__qualname__}", verb))
        if found is not None:
            break
    else:
        raise LabError(f"nothing is registered that could {verb} {type(subject).__name__}: see dne_lab.core.shown.")
    try:
        function = getattr(import_module(found.module), found.name)
    except ImportError as error:
        advice = f", or look at {instead}" if instead else ""
        raise LabError(
            f"{verb}() of {type(subject).__name__} needs {found.needs} ({error}): pip install them{advice}."
        ) from error
    return function(subject, *arguments)
