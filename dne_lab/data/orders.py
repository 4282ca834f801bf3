"""In which order classes arrive: the named orders of the literature, a seed, or any permutation."""

import functools
import json
import operator
from collections.abc import Sequence
from importlib import resources

from dne_lab import chance
from dne_lab.errors import LabError, unknown


@functools.cache
def named_orders() -> dict[str, tuple[int, ...]]:
    """The class orders in use for 100 classes: podnet_1..3 (PODNet, DER, DyTox), seed_1993 (iCaRL, FOSTER, PyCIL)."""
    text = resources.files("dne_lab.data").joinpath("class_orders.json").read_text()
    return {name: tuple(order) for name, order in json.loads(text).items()}


def class_order(order: str | int | Sequence[int], classes: int) -> tuple[int, ...]:
    """The class numbers in the order in which they arrive: entry r is the class of rank r.

    Args:
        order: "identity", a name of `named_orders`, a seed (also as text), or a permutation of 0..classes-1 (also
            comma-separated).
        classes: how many classes the source has.

    Raises:
        LabError: an unknown name, a named order for another number of classes, not a permutation.
    """
    if isinstance(order, str):
        order = order.strip()
        if order == "identity":
            return tuple(range(classes))
        if order in named_orders():
            if len(named_orders()[order]) != classes:
                raise LabError(
                    f"order {order!r} is for {len(named_orders()[order])} classes, the source has {classes}. "
                    "Give 'identity', a seed such as '0', or a permutation."
                )
            return named_orders()[order]
        try:
            numbers = [int(part) for part in order.split(",") if part.strip()]
        except ValueError:
            numbers = []
        if not numbers:
            allowed = [*named_orders(), "identity", "a seed", "a permutation such as 2,0,1"]
            raise unknown("class order", order, allowed)
        order = numbers if "," in order else numbers[0]
    if isinstance(order, int):
        return _drawn(order, classes)
    try:
        permutation = tuple(operator.index(number) for number in order)
    except TypeError as error:
        message = f"order = {order!r}: give a name, a whole number (a seed) or a list of class numbers."
        raise LabError(message) from error
    if sorted(permutation) != list(range(classes)):
        missing = sorted(set(range(classes)) - set(permutation))
        raise LabError(
            f"order with {len(permutation)} entries is not a permutation of the class numbers 0..{classes - 1}"
            + (f": missing {missing[:5]}{' ...' if len(missing) > 5 else ''}." if missing else ".")
        )
    return permutation


def _drawn(seed: int, classes: int) -> tuple[int, ...]:
    if seed < 0:
        raise LabError(f"order = {seed}: a seed must be 0 or more.")
    return tuple(chance.permutation(classes, seed, "class order").tolist())
