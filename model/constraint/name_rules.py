"""`propertyNames` as one pattern: a format of names, and a pattern together with a length.

Separate because the grammar's compiler knows names by pattern only.
"""

import re

from model.constraint.keywords import Schema

_DATE = r"[1-9][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"  # no day that some months do not have
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_FORMATS = {
    "uuid": "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
}
_SIZES = {"uuid": 36, "date": 10}
_CHARACTER = r"(?:\[(?:\\.|[^\[\]\\])+\]|\\[^A-Za-z0-9]|[\w -])"
_REPEATED = re.compile(rf"\^(?P<first>{_CHARACTER}*)(?P<repeated>{_CHARACTER})(?P<sign>[+*])\$", re.ASCII)


def as_one_pattern(rule: Schema) -> Schema | None:
    """The words of a rule, of which a pattern has no format and no length beside it; None where there is none such."""
    rule = dict(rule)
    if "format" in rule:
        name = rule.pop("format")
        if name not in _FORMATS or "pattern" in rule:
            return None
        rule["pattern"] = _FORMATS[name]
        size = _SIZES.get(name)
        if size is not None and rule.get("minLength", size) <= size <= rule.get("maxLength", size):
            rule.pop("minLength", None)
            rule.pop("maxLength", None)
    if "pattern" not in rule or not {"minLength", "maxLength"} & rule.keys():
        return rule
    match = _REPEATED.fullmatch(rule["pattern"])
    return None if match is None else _with_lengths(rule, match)


def _with_lengths(rule: Schema, match: re.Match[str]) -> Schema:
    """The rule whose pattern repeats one character at its end, as often as its lengths say."""
    num_first = len(re.findall(_CHARACTER, match["first"], re.ASCII))
    fewest = max(rule.pop("minLength", 0) - num_first, 1 if match["sign"] == "+" else 0)
    most = rule.pop("maxLength", None)
    if most is not None and most - num_first < fewest:
        return {"enum": []}
    upper = "" if most is None else most - num_first
    return {**rule, "pattern": f"^{match['first']}{match['repeated']}{{{fewest},{upper}}}$"}
