"""Options that several commands share, and the settings as options of `attend serve`.

Separate from the commands so that one knob reads the same everywhere. A setting is stated once, in settings.py: here
its type, range, default and variable become the option's help; its value goes as text to Settings, which checks it.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from model.precision import DEFAULT_PRECISION, PRECISION_NAMES
from service.settings import PREFIX, Settings

USAGE_STATUS = 2
INTEGER, INTEGERS = "INTEGER", "INTEGER RANGE"
FLOAT, FLOATS = "FLOAT", "FLOAT RANGE"
TEXT, PATH = "TEXT", "PATH"
SOURCE_HELP = "`default`, a Hugging Face folder, a .gguf file, hf:org/name, or a bundle folder"


def choice(names: tuple[str, ...]) -> str:
    """How an option shows what it may be: `[a|b]`."""
    return f"[{'|'.join(names)}]"


PRECISIONS = choice(PRECISION_NAMES)

Bundle = Annotated[
    Path | None,
    typer.Option(metavar=PATH, envvar=f"{PREFIX}BUNDLE", help="Bundle folder, instead of a source."),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="SOURCE", envvar=f"{PREFIX}SOURCE", help=f"Model: {SOURCE_HELP}; unset: `default`."
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar=PRECISIONS,
        envvar=f"{PREFIX}PRECISION",
        help=f"Precision to export the source at; unset: {DEFAULT_PRECISION}.",
    ),
]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        metavar=PATH,
        envvar=f"{PREFIX}CACHE_DIR",
        help="Folder of downloads and bundles; by default a checkout's .cache/attend or ~/.cache/attend.",
    ),
]
Threads = Annotated[
    int, typer.Option(min=0, metavar=INTEGERS, help="Threads of the ONNX session; 0: the processor's cores.")
]


def setting_parameters(*left_out: str, settings: type[BaseSettings] = Settings) -> list[inspect.Parameter]:
    """One option for each setting but those left out, and secrets: a command line can be read by every user."""
    schema = settings.model_json_schema()
    return [
        setting_option(name, info, _values_schema(schema["properties"][name], schema))
        for name, info in settings.model_fields.items()
        if name not in left_out and not _values_schema(schema["properties"][name], schema).get("writeOnly")
    ]


def setting_option(name: str, info: FieldInfo, values: dict[str, Any]) -> inspect.Parameter:
    """One setting as an option of the same name, None where it is not given. values: the JSON schema of its values."""
    flag = f"--{name.replace('_', '-')}"
    help_text = f"{info.description}  [{'; '.join(_facts(name, info, values))}]"
    if values.get("type") == "boolean":
        option = typer.Option(f"{flag}/--no-{flag.removeprefix('--')}", help=help_text, show_default=False)
        return keyword(name, Annotated[bool | None, option])
    option = typer.Option(flag, help=help_text, metavar=_metavar(values), show_default=False)
    return keyword(name, Annotated[str | None, option])


def _values_schema(schema: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """A setting's JSON schema without the null of what may be unset."""
    schema = next((each for each in schema.get("anyOf", ()) if each.get("type") != "null"), schema)
    name = schema.get("$ref", "").rpartition("/")[2]
    return dict(whole["$defs"][name]) if name else schema


def _metavar(values: dict[str, Any]) -> str:
    """The kind of a value: a choice, a number, a path or text."""
    if "enum" in values:
        return choice(tuple(str(each) for each in values["enum"]))
    if values.get("format") == "path":
        return PATH
    numbers = {"integer": (INTEGER, INTEGERS), "number": (FLOAT, FLOATS)}
    unbounded, bounded = numbers.get(values.get("type", ""), (TEXT, TEXT))
    return bounded if _range(values) else unbounded


def _facts(name: str, info: FieldInfo, values: dict[str, Any]) -> list[str]:
    """Variable, default and range, as typer shows them for options of its own."""
    facts = [f"env var: {PREFIX}{name.upper()}"]
    default = info.get_default(call_default_factory=True)
    if default is not None:
        facts.append(f"default: {str(default).lower() if isinstance(default, bool) else default}")
    return facts + ([bounds] if (bounds := _range(values)) else [])


def _range(values: dict[str, Any]) -> str:
    """`1<=x<=256`, `x>=0`; empty where every value is allowed."""
    above, below = values.get("exclusiveMinimum"), values.get("exclusiveMaximum")
    lower = f"{above}<" if above is not None else f"{values['minimum']}<=" if "minimum" in values else ""
    upper = f"<{below}" if below is not None else f"<={values['maximum']}" if "maximum" in values else ""
    if lower and not upper:
        return f"x>{above}" if above is not None else f"x>={values['minimum']}"
    return f"{lower}x{upper}" if upper else ""


def new_app(help_text: str, callback: Callable[..., None]) -> typer.Typer:
    """A group of commands; `callback` takes the group's own options.

    Plain text, not rich's boxes, so that no option is cut on a narrow terminal; no traceback of typer's own.
    """
    app = typer.Typer(
        help=help_text,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"max_content_width": 120, "help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True, help=help_text)(callback)
    return app


def help_without_command(context: typer.Context) -> None:
    """A group alone shows what it can do; with status 2, because nothing was done."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(USAGE_STATUS)


def keyword(name: str, annotation: Any, default: object = None) -> inspect.Parameter:
    """One parameter of a command, as typer reads it."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def command_from_fields(run: Callable[[Any], None], options: type[Any]) -> Callable[..., None]:
    """A command for typer from a function of one dataclass: each field is an argument or an option."""
    hints = get_type_hints(options, include_extras=True)
    parameters = [keyword(field.name, hints[field.name], field.default) for field in fields(options)]
    return command_from_parameters(lambda **values: run(options(**values)), run.__name__, run.__doc__, parameters)


def command_from_parameters(
    run: Callable[..., None], name: str, help_text: str | None, parameters: Sequence[inspect.Parameter]
) -> Callable[..., None]:
    """A command for typer whose parameters are known only when it is made."""

    def command(**values: Any) -> None:
        run(**values)

    command.__name__, command.__doc__ = name, help_text
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect's documented hook
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command
