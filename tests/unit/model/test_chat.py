"""Chat templates: rendered as transformers does, in a sandbox with bounded fuel."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer

from model.bundle import Bundle
from model.chat import ChatTemplate, ChatTemplateError
from tests.support.errors import one_line
from tests.support.tiny_checkpoint import CHAT_TEMPLATE, tiny_tokenizer_json

Message = dict[str, str]
USER = [{"role": "user", "content": "hi"}]
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Who are you? "},
    {"role": "assistant", "content": "A model."},
    {"role": "user", "content": "Ünïcödé 🙂 {{ not a template }} <b>&amp;</b>"},
]
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
# How published templates are written: whitespace control, loop variables, namespaces, slices, methods, tests, macros.
IDIOMS = {
    "tiny": CHAT_TEMPLATE,
    "special tokens": "{{ bos_token }}{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}",
    "whitespace control": "{%- for m in messages -%}\n  {{- m.role + ': ' -}}\n  {{ m.content }}\n{%- endfor -%}\n",
    "block lines": "{% for m in messages %}\n    {% if m.role == 'user' %}\n<u>{{ m.content }}\n    {% endif %}\n"
    "{% endfor %}",
    "loop variables": "{% for m in messages %}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.index % 2 }}"
    "{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}"
    "{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "slices": "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% else %}"
    "{% set rest = messages %}{% endif %}{{ rest | length }}{{ messages[-1].content }}",
    "methods": "{% for m in messages %}{{ m.content.strip() }}|{{ m['content'].upper() }}|"
    "{{ m.content.split(' ')[0] }}|{{ m.content.startswith('W') }}{{ m.get('name', 'none') }}{% endfor %}",
    "filters": "{% for m in messages %}{{ m.content | trim }}|{{ m.role | capitalize }}|{{ m.content | length }}"
    "{% endfor %}",
    "json": "{% for m in messages %}{{ m | tojson }}{{ m.content | tojson }}{{ m | tojson(indent=2) }}{% endfor %}",
    "no tools": "{% if tools is not none %}tools{% endif %}{% if tools %}tools{% endif %}"
    "{% if documents is defined and documents is not none %}documents{% endif %}{{ tools is defined }}",
    "tests": "{{ name is not defined }}{{ messages is iterable }}{{ messages[0].content is string }}",
    "membership": "{% for m in messages %}{{ m.role in ['user', 'assistant'] }}{{ 'e' in m.content }}{% endfor %}",
    "macros": "{% macro turn(m) %}<{{ m.role }}>{{ m.content }}{% endmacro %}{% for m in messages %}{{ turn(m) }}"
    "{% endfor %}",
    "conditionals": "{{ 'yes' if add_generation_prompt else 'no' }}{% if not add_generation_prompt %}end{% endif %}",
    "alternation": "{% for m in messages %}{% if (m.role == 'system') and loop.index0 > 0 %}"
    "{{ raise_exception('system must be first') }}{% endif %}{{ m.content }}{% endfor %}",
    "concatenation": "{% for m in messages %}{{ '<|' ~ m.role ~ '|>\n' + m.content + '\n' }}{% endfor %}",
}


def by_transformers(template: str, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    """The prompt that apply_chat_template of transformers makes."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=FastTokenizer.from_str(tiny_tokenizer_json()), **SPECIAL_TOKENS
    )
    return str(
        tokenizer.apply_chat_template(
            list(messages), chat_template=template, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    )


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("template", IDIOMS.values(), ids=IDIOMS.keys())
def test_idioms_of_published_templates_render_as_in_transformers(template: str, add_generation_prompt: bool) -> None:
    """Character for character, with and without the opening of the answer."""
    for messages in (CONVERSATION, CONVERSATION[1:], USER):
        rendered = ChatTemplate(template, SPECIAL_TOKENS).render(messages, add_generation_prompt=add_generation_prompt)
        assert rendered == by_transformers(template, messages, add_generation_prompt=add_generation_prompt)


TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXT})


@pytest.mark.model
@given(messages=st.lists(MESSAGE, min_size=1, max_size=5), add_generation_prompt=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(messages=CONVERSATION, add_generation_prompt=True)
@example(messages=USER, add_generation_prompt=True)
def test_default_template_renders_as_in_transformers(
    default_bundle: Bundle, messages: list[Message], add_generation_prompt: bool
) -> None:
    """Any conversation of the default model, with a system message or without."""
    template = default_bundle.chat_template
    assert template is not None
    rendered = ChatTemplate(template, default_bundle.manifest.special_tokens).render(
        messages, add_generation_prompt=add_generation_prompt
    )
    assert rendered == by_transformers(template, messages, add_generation_prompt=add_generation_prompt)


@pytest.mark.model
def test_default_template_opens_the_answer(default_bundle: Bundle) -> None:
    """The prompt as the model was trained on it."""
    template = ChatTemplate(str(default_bundle.chat_template), default_bundle.manifest.special_tokens)
    assert template.render(USER) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_messages_are_never_read_as_templates() -> None:
    """A user's braces stay braces, and nothing is escaped."""
    content = "{{ 1 + 1 }}{% raw %}<b> & 'quotes' </b>"
    assert ChatTemplate(CHAT_TEMPLATE, {}).render([{"role": "user", "content": content}]) == (
        f"<user>{content}\n<assistant>"
    )


def test_special_tokens_cannot_replace_the_messages() -> None:
    """A damaged bundle may name them anything."""
    template = ChatTemplate("{{ messages[0].content }}{{ bos_token }}", {"messages": "x", "bos_token": "<s>"})
    assert template.render(USER) == "hi<s>"


@pytest.mark.parametrize("message", ["roles must alternate", "two\nlines", "", 5])
def test_refusal_of_the_template_reaches_the_caller(message: Any) -> None:
    """`raise_exception` of Hugging Face templates becomes a ChatTemplateError of one line."""
    with pytest.raises(ChatTemplateError, match="the model's chat template refuses these messages") as caught:
        ChatTemplate("{{ raise_exception(" + repr(message) + ") }}", {}).render(USER)
    assert " ".join(str(message).split()) in one_line(caught.value)


def nested(depth: int) -> str:
    """Loops within loops."""
    return "{% for i in range(1000) %}" * depth + "x" + "{% endfor %}" * depth


@pytest.mark.parametrize(
    "template",
    [
        nested(4),
        "{% for i in range(10**12) %}x{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages[0].content[5:].x.y }}",
        "{{ messages | nonsense }}",
        "{{ nonsense() }}",
        "{{ raise_exception() }}",
        "{{ raise_exception(1, 2) }}",
        "{{ 1 // 0 }}",
        "{{ 'text' + 1 }}",
        "{% include 'chat' %}",
        "{% include '/etc/passwd' %}",
        "{% extends 'other' %}",
        "{% import '/etc/passwd' as x %}",
    ],
    ids=lambda template: template[-40:],
)
def test_hostile_template_is_stopped_with_one_line(template: str) -> None:
    """Endless loops run out of fuel, files are out of reach, and no other type escapes."""
    with pytest.raises(ChatTemplateError) as caught:
        ChatTemplate(template, {}).render(USER)
    one_line(caught.value)


@pytest.mark.parametrize(
    "source",
    ["{% if %}", "{{ x", "{% for m in messages %}", "{% endfor %}", "{{ " + "(" * 10_000 + " }}", "{% bogus %}"],
)
def test_broken_template_is_refused_when_it_is_compiled(source: str) -> None:
    """Long before the first request."""
    with pytest.raises(ChatTemplateError, match="the chat template does not compile") as caught:
        ChatTemplate(source, {})
    one_line(caught.value)


@pytest.mark.parametrize(
    "expression",
    [
        "messages.__class__",
        "messages[0].__class__",
        "messages[0].content.__class__",
        "''.__class__.__mro__[1].__subclasses__()",
        "raise_exception.__globals__",
        "raise_exception.__code__",
        "raise_exception.__globals__['os']",
        "self.__init__",
        "namespace.__init__.__globals__",
        "messages.append.__self__",
        "[].__class__.__base__",
    ],
)
def test_python_is_out_of_reach(expression: str) -> None:
    """Attributes of Python objects are undefined: they render as nothing, or are refused."""
    try:
        rendered = ChatTemplate("{{ " + expression + " }}", {}).render(USER)
    except ChatTemplateError:
        return
    assert rendered == ""


def test_long_conversation_stays_within_the_fuel() -> None:
    """A thousand messages are no attack."""
    template = ChatTemplate(CHAT_TEMPLATE, {})
    assert template.render(USER * 1000).count("<user>hi") == 1000


def test_template_can_render_again_after_a_failure() -> None:
    """The fuel is per conversation."""
    template = ChatTemplate("{% if messages | length > 1 %}" + nested(4) + "{% endif %}fine", {})
    for _ in range(3):
        with pytest.raises(ChatTemplateError, match="fuel"):
            template.render(USER * 2)
        assert template.render(USER) == "fine"
