"""The generated part of docs/api.md: every field of every request, and what other servers' fields mean here.

`python -m service.api_reference` prints it, `--write` puts it between the markers in docs/api.md. Separate from what
serves, which never imports it: it reads the schemas and the routes, starts nothing, and needs the development
dependency `openai` for the names of OpenAI's fields.
"""

import argparse
import inspect
import json
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema

from service.api import chat, completions, generate, responses_api, tokenization
from service.schemas.base import MAX_INTEGER, RequestBody, WireModel
from service.schemas.field_rules import ACCEPTED, REFUSED

DOCUMENT = Path(__file__).parents[1] / "docs" / "api.md"
COMMAND = "python -m service.api_reference --write"
BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"
ROUTERS = (generate.router, completions.router, chat.router, responses_api.router, tokenization.router)

# Request fields of other servers and clients beside OpenAI's, from their documentation and schemas.
# fmt: off
VLLM_FIELDS = (
    "add_generation_prompt", "add_special_tokens", "allowed_token_ids", "bad_words", "cache_salt", "chat_template",
    "chat_template_kwargs", "continue_final_message", "detokenize", "documents", "echo", "guided_choice",
    "guided_grammar", "guided_json", "guided_regex", "ignore_eos", "include_reasoning", "include_stop_str_in_output",
    "length_penalty", "logits_processors", "logprob_token_ids", "media_io_kwargs", "min_p", "min_tokens",
    "mm_processor_kwargs", "priority", "prompt_logprobs", "repetition_penalty", "request_id", "return_prompt_text",
    "return_token_ids", "return_token_offsets", "return_tokens_as_token_ids", "session_id", "skip_special_tokens",
    "spaces_between_special_tokens", "stop_token_ids", "structured_outputs", "thinking_token_budget", "top_k",
    "truncate_prompt_tokens", "truncation_side", "use_beam_search", "vllm_xargs", "watermarking",
)
LLAMA_CPP_FIELDS = (
    "cache_prompt", "dry_allowed_length", "dry_base", "dry_multiplier", "dry_penalty_last_n", "dry_sequence_breakers",
    "dynatemp_exponent", "dynatemp_range", "grammar", "id_slot", "ignore_eos", "image_data", "json_schema", "lora",
    "min_keep", "min_p", "mirostat", "mirostat_eta", "mirostat_tau", "n_discard", "n_keep", "n_predict", "n_probs",
    "parse_tool_calls", "post_sampling_probs", "prompt", "reasoning_format", "repeat_last_n", "repeat_penalty",
    "response_fields", "return_progress", "return_tokens", "samplers", "seed", "sse_ping_interval", "stop", "stream",
    "t_max_predict_ms", "temperature", "tfs_z", "timings_per_token", "top_k", "top_p", "typical_p", "xtc_probability",
    "xtc_threshold",
)
OPENROUTER_FIELDS = (
    "include_reasoning", "models", "plugins", "provider", "reasoning", "repetition_penalty", "route", "session_id",
    "top_a", "trace", "transforms", "usage",
)
ANTHROPIC_FIELDS = (
    "anthropic_beta", "anthropic_version", "betas", "cache_control", "context_management", "max_tokens_to_sample",
    "stop_sequences", "system", "thinking",
)
OTHER_FIELDS = tuple(sorted({*ACCEPTED, *REFUSED}))  # of Mistral's, Qwen's, Ollama's, LiteLLM's and SGLang's clients
# fmt: on

Schema = Mapping[str, Any]
Row = Sequence[str]


def request_bodies() -> dict[str, type[RequestBody]]:
    """The body of each route that has one, by path."""
    routes = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    return {
        route.path: kind
        for route in routes
        for kind in typing.get_type_hints(route.endpoint).values()
        if inspect.isclass(kind) and issubclass(kind, RequestBody)
    }


def generated() -> str:
    """Everything between the markers."""
    bodies = request_bodies()
    bases = _shared_bases(bodies.values())
    models: list[Any] = [(model, "validation") for model in (*bases, *bodies.values())]
    _, document = models_json_schema(models, ref_template="{model}")
    schemas: dict[str, Schema] = document["$defs"]
    lines: list[str] = []
    for path, model in bodies.items():
        lines += _section(f"POST {path}", _about(model, bases), _own_rows(model, bases, schemas))
    for base in bases:
        paths = ", ".join(f"`{path}`" for path, model in bodies.items() if issubclass(model, base))
        lines += _section(base.__name__, f"{inspect.getdoc(base)} Taken by {paths}.", _own_rows(base, bases, schemas))
    told = {model.__name__ for model, _ in models}
    for name in sorted(schemas.keys() - told):
        lines += _section(name, schemas[name]["description"], _field_rows(schemas[name]))
    lines += ["### Fields that clients send", "", *_compatibility(bodies)]
    return "\n".join(lines) + "\n"


def updated(text: str) -> str:
    """The document with its generated part made anew."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{generated()}\n{END}{after}"


def main() -> None:
    """Print the generated part, or write it into the document."""
    parser = argparse.ArgumentParser(prog="python -m service.api_reference", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--write", action="store_true", help=f"update {DOCUMENT.name} in place")
    if parser.parse_args().write:
        DOCUMENT.write_text(updated(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(generated(), end="")


def _shared_bases(models: Iterable[type[RequestBody]]) -> list[type[WireModel]]:
    """What several bodies inherit their fields from, the most special first."""
    ancestors = [base for model in models for base in _bases(model)]
    return sorted({base for base in ancestors if ancestors.count(base) > 1}, key=lambda base: -len(base.__mro__))


def _bases(model: type[WireModel]) -> list[type[WireModel]]:
    return [base for base in model.__mro__[1:] if issubclass(base, WireModel) and base not in (WireModel, RequestBody)]


def _about(model: type[WireModel], bases: Sequence[type[WireModel]]) -> str:
    """What a body is, and where its other fields are told."""
    links = [f"[{base.__name__}](#{_anchor(base.__name__)})" for base in bases if base in _bases(model)]
    inherited = f"\nBeside these it takes the fields of {', '.join(links)}." if links else ""
    return f"{inspect.getdoc(model)}{inherited}"


def _own_rows(model: type[WireModel], bases: Sequence[type[WireModel]], schemas: Mapping[str, Schema]) -> list[Row]:
    """The fields that a model does not share with its nearest shared base."""
    whole = schemas[model.__name__]
    inherited = [schemas[base.__name__]["properties"] for base in bases if base in _bases(model)][:1]
    theirs = inherited[0] if inherited else {}
    own = {name: field for name, field in whole["properties"].items() if field != theirs.get(name)}
    return _field_rows({**whole, "properties": own})


def _section(title: str, about: str, rows: Iterable[Row]) -> list[str]:
    return [f"### {title}", "", about, "", *_table(("field", "type", "default", "range", "meaning"), list(rows)), ""]


def _table(heads: Row, rows: Sequence[Row]) -> list[str]:
    """A Markdown table; a column in which no row says anything is left out."""
    kept = [at for at in range(len(heads)) if at == 0 or any(row[at] for row in rows)]
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(line[at].replace("|", r"\|") for at in kept) + " |" for line in lines]


def _field_rows(schema: Schema) -> list[Row]:
    """A model's fields, those that must be given first."""
    required = schema.get("required", ())
    names = sorted(schema["properties"], key=lambda name: name not in required)
    return [_field_row(name, schema["properties"][name], name in required) for name in names]


def _field_row(name: str, field: Schema, is_required: bool) -> Row:
    default = "" if field.get("default") is None else f"`{json.dumps(field['default'])}`"
    shown = "**required**" if is_required else default
    return (f"`{name}`", _type(field), shown, "; ".join(dict.fromkeys(_ranges(field))), field.get("description", ""))


def _branches(field: Schema) -> list[Schema]:
    """The types that a field may have. A null stands for the default wherever there is one, so it is not told."""
    branches: list[Schema] = field.get("anyOf") or field.get("oneOf") or [field]
    return [branch for branch in branches if branch.get("type") != "null"] or branches


def _type(field: Schema) -> str:
    return " or ".join(dict.fromkeys(_single_type(branch) for branch in _branches(field)))


def _single_type(field: Schema) -> str:
    if "$ref" in field:
        return f"[{field['$ref']}](#{_anchor(field['$ref'])})"
    if values := _values(field):
        return ", ".join(f"`{json.dumps(value)}`" for value in values)
    if "anyOf" in field or "oneOf" in field:
        return _type(field)
    if field.get("type") == "array":
        return f"list of {_type(field['items']) if field['items'] else 'anything'}"
    kind = str(field.get("type", "anything"))
    return "text" if kind == "string" else kind


def _values(field: Schema) -> list[Any]:
    return [field["const"]] if "const" in field else field.get("enum", [])


def _ranges(field: Schema) -> Iterator[str]:
    """Each bound that a value must keep."""
    for branch in _branches(field):
        if "anyOf" in branch or "oneOf" in branch:
            yield from _ranges(branch)
        yield from _bounds(branch)


def _bounds(field: Schema) -> Iterator[str]:
    if field.get("type") in ("integer", "number"):
        yield from _span(field.get("minimum"), field.get("maximum"), field)
    elif field.get("type") == "string":
        yield from _span(field.get("minLength"), field.get("maxLength"), field, " characters")
        if "pattern" in field:
            yield f"matches `{field['pattern']}`"
    elif field.get("type") == "array":
        yield from _span(field.get("minItems"), field.get("maxItems"), field, " items")
        yield from (f"each {bound}" for bound in _ranges(field["items"]))
    elif field.get("type") == "object":
        yield from _span(field.get("minProperties"), field.get("maxProperties"), field, " entries")
        inner = field.get("additionalProperties")
        values = [*field.get("patternProperties", {}).values(), *([inner] if isinstance(inner, dict) else [])]
        yield from (f"each {bound}" for value in values for bound in _bounds(value))


def _span(least: float | None, most: float | None, field: Schema, unit: str = "") -> Iterator[str]:
    """`0 to 2`. Bounds that only keep an integer in 32 bits are not told."""
    least = None if least == -MAX_INTEGER else least
    most = None if most == MAX_INTEGER else most
    if (above := field.get("exclusiveMinimum")) is not None:
        least_text = f"above {_number(above)}"
    else:
        least_text = "" if least is None else _number(least)
    if (below := field.get("exclusiveMaximum")) is not None:
        most_text = f"{_number(below)} - 1" if field["type"] == "integer" else f"below {_number(below)}"
    else:
        most_text = "" if most is None else _number(most)
    if least_text and least_text == most_text:
        yield f"exactly {least_text}{unit.removesuffix('s') if least == 1 else unit}"
    elif least_text and most_text:
        yield f"{least_text}{',' if above is not None else ''} to {most_text}{unit}"
    elif least_text or most_text:
        yield f"at {'least' if least_text else 'most'} {least_text or most_text}{unit}"


def _number(value: float) -> str:
    return {2**63: "2^63", -(2**63): "-2^63"}.get(int(value), f"{value:g}" if abs(value) < 1e6 else str(value))


def _anchor(title: str) -> str:
    """As GitHub makes it of a heading."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def _openai_fields() -> dict[str, list[str]]:
    """The parameters of OpenAI's create calls, by the call's name."""
    from openai.types import completion_create_params
    from openai.types.chat import completion_create_params as chat_create_params
    from openai.types.responses import response_create_params

    calls = {
        "completions": completion_create_params.CompletionCreateParams,
        "chat": chat_create_params.CompletionCreateParams,
        "responses": response_create_params.ResponseCreateParams,
    }
    return {
        call: sorted({name for params in typing.get_args(union) for name in params.__annotations__})
        for call, union in calls.items()
    }


def _compatibility(bodies: Mapping[str, type[RequestBody]]) -> list[str]:
    """The treatment of every field that clients of other servers send, by generation route."""
    sources: dict[str, Sequence[str]] = {f"OpenAI {call}": names for call, names in _openai_fields().items()}
    sources |= {"vLLM": VLLM_FIELDS, "llama.cpp": LLAMA_CPP_FIELDS, "OpenRouter": OPENROUTER_FIELDS}
    sources |= {"Anthropic": ANTHROPIC_FIELDS, "others": OTHER_FIELDS}
    generating = {path: model for path, model in bodies.items() if path.startswith("/v1/")}
    schemas = {path: model.model_json_schema()["properties"] for path, model in generating.items()}
    rows: list[Row] = []
    for name in sorted({name for names in sources.values() for name in names}):
        cells = [_treatment(name, fields.get(name)) for fields in schemas.values()]
        rows.append((f"`{name}`", _sources_of(name, sources), *cells, _reason(name, cells)))
    return _table(("field", "of", *(f"`{path}`" for path in generating), "because"), rows)


def _sources_of(name: str, sources: Mapping[str, Sequence[str]]) -> str:
    found = [source for source, names in sources.items() if name in names]
    calls = [source.removeprefix("OpenAI ") for source in found if source.startswith("OpenAI ")]
    openai = [f"OpenAI ({', '.join(calls)})"] if calls else []
    named = [*openai, *(source for source in found if not source.startswith("OpenAI ") and source != "others")]
    return ", ".join(named or found)


def _treatment(name: str, field: Schema | None) -> str:
    """`honoured`, `no effect`, `refused`; with the only values that are taken."""
    if field is not None:
        values = _values(field) or _values(field.get("items", {}))
        return f"only {', '.join(f'`{json.dumps(value)}`' for value in values)}" if values else "honoured"
    if name not in ACCEPTED:
        return "refused"
    return f"no effect; only {ACCEPTED[name].values}" if ACCEPTED[name].values else "no effect"


def _reason(name: str, cells: Sequence[str]) -> str:
    """The reason that the service gives where it does not honour a field."""
    if "refused" in cells:
        return REFUSED.get(name, "not a field" if set(cells) == {"refused"} else "")
    return ACCEPTED[name].why if any(cell.startswith("no effect") for cell in cells) else ""


if __name__ == "__main__":
    main()
