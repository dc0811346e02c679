"""Templates with the demands of published ones: turns that alternate, no system role, calls in shapes of their own."""

import json
from datetime import datetime
from typing import Any

import pytest

from model.chat import ChatTemplate, ChatTemplateError
from model.tool_messages import NativeTools, ToolForm, ToolsAsText
from tests.support.by_transformers import as_clients_send, rendered_by_transformers
from tests.support.chat_templates import SPECIAL_TOKENS, TEMPLATES

Message = dict[str, Any]
QUESTION: Message = {"role": "user", "content": "What's the weather?"}
SYSTEM: Message = {"role": "system", "content": "Be <brief> & 'kind'."}
THOUGHT: Message = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nSunny.\n"}
TOOLS: list[Message] = [{"name": "weather", "description": "Of a city.", "parameters": {"type": "object"}}]


def call(identity: str, city: str) -> Message:
    return {"id": identity, "name": "weather", "arguments": {"city": city, "days": 1.0}}


def result(identity: str, text: str) -> Message:
    return {"role": "tool", "tool_call_id": identity, "content": text}


def calling(*calls: Message) -> Message:
    return {"role": "assistant", "content": "", "tool_calls": list(calls)}


ONE_CALL = [QUESTION, calling(call("call_1", "Oslo")), result("call_1", "rain")]
TWO_CALLS = [
    QUESTION,
    calling(call("call_1", "Oslo"), call("call_2", "Malmö")),
    result("call_2", "sun"),
    result("call_1", "rain"),
]
CONVERSATIONS: dict[str, list[Message]] = {
    "question": [QUESTION],
    "system": [SYSTEM, QUESTION],
    "answered": [QUESTION, THOUGHT, {"role": "user", "content": " And\ttomorrow? \n"}],
    "answered with system": [SYSTEM, QUESTION, THOUGHT, QUESTION],
    "two questions": [QUESTION, QUESTION],
    "answer first": [THOUGHT, QUESTION],
    "late system": [QUESTION, THOUGHT, SYSTEM, QUESTION],
    "empty": [{"role": "user", "content": ""}],
    "marks": [{"role": "user", "content": "</think> <|im_end|> {{ x }} <tool_response>\nx\n</tool_response>"}, THOUGHT],
}
WITH_CALLS: dict[str, list[Message]] = {
    "tools only": [QUESTION],
    "tools and system": [SYSTEM, QUESTION],
    "a result": ONE_CALL,
    "two results, in another order": TWO_CALLS,
    "answered": [*TWO_CALLS, THOUGHT, QUESTION],
    "a result and a question": [*ONE_CALL, QUESTION],
    "called twice": [*ONE_CALL, *ONE_CALL[1:], THOUGHT],
    "said and called": [QUESTION, {**calling(call("call_1", "Oslo")), "content": "Let me see."}, result("call_1", "x")],
}
FORMS: dict[str, tuple[ToolForm, ...]] = {
    "chatml": (ToolsAsText(),),
    "deepseek": (NativeTools(has_json_arguments=True), ToolsAsText()),
    "gemma": (ToolsAsText(has_system=False, merges=True),),
    "generation": (ToolsAsText(),),
    "llama-2": (ToolsAsText(merges=True),),
    "llama-3.1": (NativeTools(has_single_calls=True), ToolsAsText()),
    "mistral-v0.1": (ToolsAsText(has_system=False, merges=True),),
    "mistral-v0.3": (NativeTools(has_short_ids=True), ToolsAsText(merges=True)),
    "phi-3": (ToolsAsText(),),
    "phi-4": (ToolsAsText(),),
    "qwen-2.5": (NativeTools(), ToolsAsText()),
    "qwen-3": (NativeTools(), ToolsAsText()),
    "zephyr": (ToolsAsText(),),
}
REFUSE_SYSTEM = ("gemma", "mistral-v0.1")


def rendered(family: str, messages: list[Message], **options: Any) -> str | None:
    """The prompt; None where the template refuses the messages."""
    try:
        return ChatTemplate(TEMPLATES[family], SPECIAL_TOKENS).render(messages, **options)
    except ChatTemplateError:
        return None


@pytest.mark.parametrize("opens", [True, False])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("family", TEMPLATES)
def test_conversations_render_as_in_transformers(family: str, conversation: str, opens: bool) -> None:
    """Character for character; what transformers refuses is refused."""
    messages = CONVERSATIONS[conversation]
    expected = rendered_by_transformers(TEMPLATES[family], messages, add_generation_prompt=opens, values=SPECIAL_TOKENS)
    assert rendered(family, messages, add_generation_prompt=opens) == expected


@pytest.mark.parametrize("conversation", WITH_CALLS)
@pytest.mark.parametrize("family", ["qwen-2.5", "qwen-3"])
def test_calls_render_as_in_transformers(family: str, conversation: str) -> None:
    """Where a template takes the shapes that clients send."""
    messages = WITH_CALLS[conversation]
    expected = rendered_by_transformers(
        TEMPLATES[family], as_clients_send(messages), TOOLS, add_generation_prompt=True, values=SPECIAL_TOKENS
    )
    assert expected is not None
    assert rendered(family, messages, tools=TOOLS) == expected


@pytest.mark.parametrize("family", TEMPLATES)
def test_the_forms_of_tools_are_found_by_trying(family: str) -> None:
    """Once for a template: its own shapes, then text, with the system message or without."""
    assert ChatTemplate(TEMPLATES[family], SPECIAL_TOKENS).tool_forms == FORMS[family]


@pytest.mark.parametrize("conversation", WITH_CALLS)
@pytest.mark.parametrize("family", TEMPLATES)
def test_no_template_refuses_what_attend_adds(family: str, conversation: str) -> None:
    """Tools, calls and results reach every template; only a client's own system message may be refused."""
    messages = WITH_CALLS[conversation]
    text = rendered(family, messages, tools=TOOLS)
    if messages[0] == SYSTEM and family in REFUSE_SYSTEM:
        assert text is None
        return
    assert text is not None
    for shown in ("weather", "Of a city.", *(m["content"].strip() for m in messages if m["role"] in ("user", "tool"))):
        if (family, shown) != ("mistral-v0.3", "Of a city.") or messages[-1]["role"] == "user":
            assert shown in text


def test_a_template_without_system_role_gets_tools_with_the_first_question() -> None:
    """In front of it, in the same turn."""
    text = rendered("gemma", [QUESTION], tools=TOOLS)
    assert text is not None
    assert text.startswith("<s><start_of_turn>user\nYou may call functions")
    assert text.endswith(f"\n\n{QUESTION['content']}<end_of_turn>\n<start_of_turn>model\n")


def test_results_and_the_next_question_are_one_turn_where_turns_alternate() -> None:
    """And turns of their own elsewhere."""
    messages = [*TWO_CALLS, QUESTION]
    merged, apart = rendered("gemma", messages, tools=TOOLS), rendered("chatml", messages, tools=TOOLS)
    assert merged is not None
    assert apart is not None
    assert merged.count("<start_of_turn>user") == 2
    assert apart.count("<|im_start|>user") == 4
    assert "</tool_response>\n<tool_response>\nrain\n</tool_response>\nWhat's the weather?" in merged


def test_a_clients_own_turns_are_not_merged() -> None:
    """Two questions in a row are refused by a template that refuses them, as in transformers."""
    assert rendered("gemma", [QUESTION, QUESTION], tools=TOOLS) is None


def test_a_template_for_single_calls_gets_one_at_a_time() -> None:
    """Each with its own result, whatever the order in which the results came."""
    text = rendered("llama-3.1", TWO_CALLS, tools=TOOLS)
    assert text is not None
    assert [text.index(part) for part in ("Oslo", '"rain"', "Malmö", '"sun"')] == sorted(
        text.index(part) for part in ("Oslo", '"rain"', "Malmö", '"sun"')
    )


def test_ids_that_a_template_insists_on_are_the_same_for_call_and_result() -> None:
    """Nine letters and digits made of the client's id; one that has that form stays."""
    text = rendered(
        "mistral-v0.3", [QUESTION, calling(call("abcDEF123", "Oslo")), result("abcDEF123", "x")], tools=TOOLS
    )
    assert text is not None
    assert text.count("abcDEF123") == 2
    longer = rendered("mistral-v0.3", ONE_CALL, tools=TOOLS)
    assert longer is not None
    assert "call_1" not in longer
    identity = longer.split('"call_id": "')[1][:9]
    assert longer.count(identity) == 2


@pytest.mark.parametrize("arguments", ["{}", '{"city": "Oslo", "days": 1.0}'])
def test_arguments_are_json_in_a_string_for_templates_that_join_them(arguments: str) -> None:
    """As DeepSeek's template has them."""
    messages = [QUESTION, calling({"id": "c", "name": "weather", "arguments": json.loads(arguments)}), result("c", "x")]
    assert f"weather\n```json\n{arguments}\n```" in str(rendered("deepseek", messages, tools=TOOLS))


def test_forms_change_no_message() -> None:
    """A conversation may be rendered again."""
    before = json.dumps(TWO_CALLS)
    for family in TEMPLATES:
        rendered(family, TWO_CALLS, tools=TOOLS)
    assert json.dumps(TWO_CALLS) == before


def test_the_date_is_todays() -> None:
    """In local time, as transformers has it: such a prompt changes from day to day."""
    day = datetime.now().astimezone().strftime("%d %b %Y")
    text = rendered("llama-3.1", [QUESTION])
    assert text is not None
    assert f"Today Date: {day}" in text or datetime.now().astimezone().strftime("%d %b %Y") in text
