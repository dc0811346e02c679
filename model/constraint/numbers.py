"""The bounds of numbers: some where a schema leaves them open, and none that the grammar's compiler cannot hold.

Separate because a small model goes on with digits for ever, and because the compiler reads bounds as floats.
"""

import math
from collections.abc import Mapping
from typing import Any

from model.constraint.place import Place

_MOST_ROOM = 10**15  # below 2**53, so that it is exact in llguidance's arithmetic
_MOST_NUMBER = 2**63 - 1024  # the greatest float below 2**63: llguidance has integers of 64 bits
_STEP = 1e-6
_LOWER, _UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")


def bounded_number(node: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """A schema whose numbers have bounds where it leaves them open, and bounds that can be enforced where it does not.

    They reach to 10**15 either way or as far from the bound that is given, and have up to 6 digits behind the point.

    Raises:
        ConstraintError: no number that can be written is within the bounds.
    """
    types = node.get("type")
    names = types if isinstance(types, list) else [types]
    bounded = dict(node)
    if "enum" in node or "const" in node or not {"integer", "number"} & set(names):
        return bounded
    if "number" not in names:
        _include_bounds(bounded)
    for direction, keys in ((1, _LOWER), (-1, _UPPER)):
        bounded |= {key: _inner_bound(bounded[key], direction, place) for key in keys if key in bounded}
    low = max((bounded[key] for key in _LOWER if key in bounded), default=None)
    high = min((bounded[key] for key in _UPPER if key in bounded), default=None)
    if low is None:
        low = bounded["minimum"] = _inner_bound(min(high or 0, 0) - _MOST_ROOM, 1, place)
    if high is None:
        high = bounded["maximum"] = _inner_bound(max(low, 0) + _MOST_ROOM, -1, place)
    if "number" in names and "multipleOf" not in node and high - low > 100 * _STEP:
        bounded["multipleOf"] = _STEP
    return bounded


def has_numbers(node: Mapping[str, Any], *, is_whole: bool) -> bool:
    """Whether there is a number, or an integer, within the bounds of a schema."""
    bounds = {key: node[key] for key in (*_LOWER, *_UPPER) if key in node}
    if is_whole:
        _include_bounds(bounds)
        low, high = math.ceil(bounds.get("minimum", 0)), math.floor(bounds.get("maximum", 0))
        return low <= high or not {"minimum", "maximum"} <= bounds.keys()
    low = max((bounds[key] for key in _LOWER if key in bounds), default=-math.inf)
    high = min((bounds[key] for key in _UPPER if key in bounds), default=math.inf)
    excluded = (bounds.get("exclusiveMinimum"), bounds.get("exclusiveMaximum"))
    return low < high or (low == high and low not in excluded)


def _include_bounds(bounded: dict[str, Any]) -> None:
    """An integer's exclusive bounds as inclusive ones, in place: the compiler takes 1 from a float."""
    if "exclusiveMinimum" in bounded:
        least = math.floor(bounded.pop("exclusiveMinimum")) + 1
        bounded["minimum"] = max(least, bounded.get("minimum", least))
    if "exclusiveMaximum" in bounded:
        greatest = math.ceil(bounded.pop("exclusiveMaximum")) - 1
        bounded["maximum"] = min(greatest, bounded.get("maximum", greatest))


def _inner_bound(bound: float, direction: int, place: Place) -> float:
    """The nearest bound that is a float of at most 63 bits. direction: 1 for a lower bound, -1 for an upper one."""
    if bound * direction > _MOST_NUMBER:
        raise place.error(f"no number beyond 2^63 can be enforced, so none fits the bound {bound!r:.40}")
    if abs(bound) > _MOST_NUMBER:
        return -_MOST_NUMBER * direction
    near = float(bound)
    if (near - bound if isinstance(bound, float) else int(near) - bound) * direction < 0:
        near = math.nextafter(near, math.inf * direction)
    return bound if near == bound else int(near)
