"""The sandbox in which chat templates run: minijinja, with what transformers adds to Jinja.

Separate from the template because it is where the two engines differ. Fuel bounds every rendering, and templates reach
no attribute of Python.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import minijinja
from minijinja._lowlevel import State

from model.template_source import METHOD_FILTER, METHODS, adapted

FUEL = 1_000_000  # template instructions; a 1,000-message conversation takes a few tens of thousands
MAX_INDENT = 32
MAX_WIDTH = 10_000
NOW = "_now"  # variables of the environment's own: the time of a rendering,
STAND_INS = "_stand_ins"  # and the characters that JSON must not escape, since others stand behind them


class TemplateRefusalError(ValueError):
    """`raise_exception` was called."""


class WrittenFloat:
    """A number that minijinja would write in another way than Python: `1.0`, `1e+20`."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __repr__(self) -> str:
        return repr(self.value)


def environment_of(source: str) -> minijinja.Environment:
    """An environment with one template, `chat`.

    Raises:
        minijinja.TemplateError: the source is not a template.
    """
    environment = minijinja.Environment(
        trim_blocks=True, lstrip_blocks=True, fuel=FUEL, pycompat=True, undefined_behavior="lenient"
    )
    environment.add_global("raise_exception", _raise_exception)
    environment.add_global("strftime_now", minijinja.pass_state(_strftime_now))
    environment.add_filter("tojson", minijinja.pass_state(_to_json))
    environment.add_filter(METHOD_FILTER, _call_method)
    environment.add_test("sequence", lambda value: isinstance(value, (str, list, tuple, dict)))
    environment.add_test("number", lambda value: isinstance(value, (int, float, WrittenFloat)))
    environment.add_test("float", lambda value: isinstance(value, (float, WrittenFloat)))
    environment.add_template("chat", adapted(source))
    return environment


def values_of(values: Mapping[str, Any], now: datetime, stand_ins: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The variables of a rendering."""
    return {**_with_written_floats(dict(values)), NOW: now.timestamp(), STAND_INS: "".join(sorted(stand_ins))}


def _with_written_floats(value: Any) -> Any:
    if isinstance(value, float):
        return WrittenFloat(value) if value.is_integer() or "e" in repr(value) else value
    if isinstance(value, Mapping):
        return {key: _with_written_floats(inner) for key, inner in value.items()}
    return [_with_written_floats(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _to_json(
    state: State,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """`tojson` as transformers has it; minijinja's own escapes for HTML."""
    if indent is not None and not 0 <= indent <= MAX_INDENT:
        raise TemplateRefusalError(f"tojson was asked to indent by {indent}; 0 to {MAX_INDENT} are possible")
    text = json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=None if separators is None else (separators[0], separators[1]),
        sort_keys=sort_keys,
        default=_written_value,
    )
    for stand_in in state.lookup(STAND_INS) if ensure_ascii else "":
        text = text.replace(json.dumps(stand_in)[1:-1], stand_in)
    return text


def _written_value(value: Any) -> float:
    if isinstance(value, WrittenFloat):
        return value.value
    raise TemplateRefusalError("tojson was given something that JSON has no form for")


def _call_method(value: Any, name: str, *arguments: Any, **named: Any) -> Any:
    """A method of a text that minijinja lacks; none of them reaches further than texts and numbers."""
    is_known = name in METHODS | {"split"} if isinstance(value, str) else name == "index" and isinstance(value, list)
    if not is_known or any(isinstance(argument, int) and argument > MAX_WIDTH for argument in arguments):
        raise TemplateRefusalError(f"{name}() is a method of texts, with numbers of up to {MAX_WIDTH}")
    return getattr(value, name)(*arguments, **named)


def _raise_exception(message: str) -> str:
    """`raise_exception(...)` of Hugging Face templates."""
    raise TemplateRefusalError(message)


def _strftime_now(state: State, form: str) -> str:
    """The local time, as transformers has it: prompts that show it change with it."""
    return datetime.fromtimestamp(state.lookup(NOW)).astimezone().strftime(form)
