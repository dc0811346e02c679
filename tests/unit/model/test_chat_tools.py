"""Tools and unfinished messages in chat templates: those that know them, and those that do not."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer

from model.chat import ChatTemplate, ChatTemplateError, tool_call_text
from model.constraint import TOOL_CALL_BEGIN, TOOL_CALL_END
from tests.support.errors import one_line
from tests.support.tiny_checkpoint import CHAT_TEMPLATE, tiny_tokenizer_json

Message = dict[str, Any]
USER: list[Message] = [{"role": "user", "content": "hi"}]
TOOLS: list[Message] = [
    {"name": "weather", "description": "{tools} of a {{ city }}", "parameters": {"type": "object", "title": "<é>"}},
    {"name": "time"},
]
CALLS: list[Message] = [
    {"name": "weather", "arguments": {"city": "Malmö", "days": [1, None]}},
    {"name": "time", "arguments": {}},
]
CALLED: list[Message] = [
    *USER,
    {"role": "assistant", "content": "Let me see.", "tool_calls": CALLS},
    {"role": "tool", "content": "sunny"},
    {"role": "tool", "content": "12:00"},
]
# The idioms of published templates for tools.
KNOWS_TOOLS = (
    "{%- if tools %}{{- 'TOOLS' }}{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}"
    "{{- '\\n' }}{%- endif %}{%- for m in messages %}{{- '<' + m.role + '>' }}"
    "{%- if m.content %}{{- m.content }}{%- endif %}"
    "{%- if m.tool_calls %}{%- for call in m.tool_calls %}"
    "{%- if call.function is defined %}{%- set call = call.function %}{%- endif %}"
    "{{- '{\"name\": \"' }}{{- call.name }}{{- '\", \"arguments\": ' }}{{- call.arguments | tojson }}{{- '}' }}"
    "{%- endfor %}{%- endif %}{%- if m.role == 'tool' and (loop.last or messages[loop.index0 + 1].role != 'tool') %}"
    "{{- '</tools>' }}{%- endif %}{{- '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<assistant>' }}{%- endif %}"
)


def by_transformers(messages: Sequence[Message], tools: Sequence[Message], **options: Any) -> str:
    """The prompt that apply_chat_template of transformers makes, given what OpenAI's clients send."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=FastTokenizer.from_str(tiny_tokenizer_json()))
    nested = [{"type": "function", "function": tool} for tool in tools]
    sent = [
        {**m, "tool_calls": [{"type": "function", "function": call} for call in m["tool_calls"]]}
        if "tool_calls" in m
        else m
        for m in messages
    ]
    return str(
        tokenizer.apply_chat_template(sent, tools=nested or None, chat_template=KNOWS_TOOLS, tokenize=False, **options)
    )


@pytest.mark.parametrize("tools", [[], TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("messages", [USER, CALLED], ids=["question", "called"])
def test_templates_that_know_tools_render_as_in_transformers(messages: list[Message], tools: list[Message]) -> None:
    """Tools, calls and results in the shapes that published templates read."""
    rendered = ChatTemplate(KNOWS_TOOLS, {}).render(messages, tools=tools)
    assert rendered == by_transformers(messages, tools, add_generation_prompt=True)


def test_templates_that_do_not_know_tools_get_them_as_text() -> None:
    """In a system message of their own, as JSON, with the form of a call; braces in them are nothing special."""
    rendered = ChatTemplate(CHAT_TEMPLATE, {}).render(USER, tools=TOOLS)
    head, _, rest = rendered.partition("\n<user>hi\n")
    assert head.startswith("<system>You may call functions")
    assert rest == "<assistant>"
    assert [json.loads(line) for line in head.splitlines()[-2:]] == TOOLS
    assert "{tools} of a {{ city }}" in head
    assert "<é>" in head
    assert '<tool_call>\n{"name": "FUNCTION", "arguments": {…}}\n</tool_call>' in head


def test_the_system_message_stays_in_front_of_the_tools() -> None:
    """There is still one system message."""
    messages = [{"role": "system", "content": "Be brief."}, *USER]
    rendered = ChatTemplate(CHAT_TEMPLATE, {}).render(messages, tools=TOOLS)
    assert rendered.startswith("<system>Be brief.\n\nYou may call functions")
    assert rendered.count("<system>") == 1


def test_calls_and_results_become_text_where_templates_do_not_know_them() -> None:
    """In roles that every template has, and in the form in which the model is to call."""
    rendered = ChatTemplate(CHAT_TEMPLATE, {}).render(CALLED)
    calls = "\n".join(tool_call_text(call["name"], call["arguments"]) for call in CALLS)
    assert rendered == (
        f"<user>hi\n<assistant>Let me see.\n{calls}\n"
        "<user><tool_response>\nsunny\n</tool_response>\n<user><tool_response>\n12:00\n</tool_response>\n<assistant>"
    )


def test_a_call_reads_as_the_constraint_has_it() -> None:
    """So that what a model is shown is what it must write."""
    text = tool_call_text("weather", {"city": "Malmö"})
    assert text == f'{TOOL_CALL_BEGIN}{{"name": "weather", "arguments": {{"city": "Malmö"}}}}{TOOL_CALL_END}'


def test_rendering_changes_no_message() -> None:
    """A conversation may be rendered again, with tools or without, whole or to be continued."""
    before = json.dumps(CALLED)
    for source in (CHAT_TEMPLATE, KNOWS_TOOLS):
        template = ChatTemplate(source, {})
        first = template.render(CALLED, tools=TOOLS)
        template.render(CALLED, tools=TOOLS, continue_final_message=True)
        assert template.render(CALLED, tools=TOOLS) == first
    assert json.dumps(CALLED) == before


TEXT = st.text(alphabet="<>/asint \n|e}{🙂", min_size=1, max_size=12).filter(str.strip)


@given(TEXT, TEXT)
def test_a_message_is_continued_at_its_own_end(question: str, begun: str) -> None:
    """Wherever else its text stands: in other messages, or in what the template writes behind it."""
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|end|>\n{% endfor %}"
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": begun}]
    rendered = ChatTemplate(source, {}).render(messages, continue_final_message=True)
    assert rendered == f"<user>{question}<|end|>\n<assistant>{begun.rstrip()}"


@given(TEXT)
def test_templates_that_strip_messages_can_continue_them(begun: str) -> None:
    """White space around a message is the template's business."""
    source = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}"
    rendered = ChatTemplate(source, {}).render([{"role": "user", "content": begun}], continue_final_message=True)
    assert rendered == f"[{begun.strip()}"


@pytest.mark.parametrize("content", ["", " ", "\n\t"])
def test_a_message_without_text_cannot_be_continued(content: str) -> None:
    """There is no place to go on from."""
    messages = [*USER, {"role": "assistant", "content": content}]
    with pytest.raises(ChatTemplateError, match="needs a last message with text") as caught:
        ChatTemplate(CHAT_TEMPLATE, {}).render(messages, continue_final_message=True)
    one_line(caught.value)


@pytest.mark.parametrize("change", ["upper", "replace('i', 'o')", "title", "split('h')[0]"])
def test_a_template_that_changes_the_text_cannot_continue_it(change: str) -> None:
    """Better refused than continued from something else."""
    call = change if change.endswith((")", "]")) else f"{change}()"
    source = "{% for m in messages %}{{ m.content." + call + " }}{% endfor %}"
    with pytest.raises(ChatTemplateError, match="which the template keeps as it is"):
        ChatTemplate(source, {}).render(USER, continue_final_message=True)


def test_continuing_opens_no_turn() -> None:
    """Whatever add_generation_prompt says."""
    template = ChatTemplate(CHAT_TEMPLATE, {})
    for opens in (True, False):
        rendered = template.render(USER, add_generation_prompt=opens, continue_final_message=True)
        assert rendered == "<user>hi"
