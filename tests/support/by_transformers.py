"""The prompt that transformers makes with a chat template: what Attend's is compared with."""

from collections.abc import Mapping, Sequence
from typing import Any


def rendered_by_transformers(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    add_generation_prompt: bool = True,
    values: Mapping[str, Any] | None = None,
) -> str | None:
    """The text; None where the template refuses the messages. `tools` as Attend has them: functions without wrapper."""
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    nested = [{"type": "function", "function": dict(tool)} for tool in tools] or None
    options = {"add_generation_prompt": add_generation_prompt, **(values or {})}
    try:
        rendered, _ = render_jinja_template([list(messages)], tools=nested, chat_template=source, **options)
    except (jinja2.TemplateError, TypeError):
        return None
    return str(rendered[0])


def as_clients_send(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as transformers takes them: calls nested under `function`."""
    return [
        {**m, "tool_calls": [_nested(call) for call in m["tool_calls"]]} if "tool_calls" in m else dict(m)
        for m in messages
    ]


def _nested(call: Mapping[str, Any]) -> dict[str, Any]:
    identity = {"id": call["id"]} if "id" in call else {}
    return {"type": "function", **identity, "function": {"name": call["name"], "arguments": call["arguments"]}}
