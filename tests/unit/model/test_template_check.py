"""Chat templates tried out at export: what is refused there, and what is only said."""

import pytest

from model.chat import ChatTemplateError
from model.template_check import template_findings
from tests.support.chat_templates import SPECIAL_TOKENS, TEMPLATES
from tests.support.errors import one_line

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
KNOWN = PLAIN + "{% if tools %}{{ tools }}{% endif %}{% for m in messages %}{{ m }}{% endfor %}"
REFUSES_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN


def test_a_template_that_takes_everything_has_no_findings() -> None:
    """System messages, answers, tools and results."""
    assert template_findings(TEMPLATES["qwen-2.5"], SPECIAL_TOKENS) == []
    assert template_findings(KNOWN, {}) == []


@pytest.mark.parametrize("family", TEMPLATES)
def test_every_published_family_can_be_exported(family: str) -> None:
    """Whatever it refuses is said in lines, one each."""
    for line in template_findings(TEMPLATES[family], SPECIAL_TOKENS):
        assert "\n" not in line


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% if %}", "no expression"),
        ("{{ x", "never closed"),
        ("{% bogus %}", "a statement that nobody has"),
        ("{% generation %}x", "a generation without its end"),
        ("{{ raise_exception('nothing') }}", "refuses all"),
        ("{{ messages[0].content.parts.x }}", "reads parts that texts have not"),
        ("{% for m in messages %}{{ m.content | bogus }}{% endfor %}", "needs a filter that nobody has"),
        ("", "an empty file"),
        (" \n", "blanks"),
        ("chatml", "a name of a template instead of one"),
        ("You are helpful.", "a system prompt"),
        ("{{ bos_token }}<|im_start|>assistant\n", "opens answers, shows nothing"),
        ("{% for m in messages %}{{ m.role }}: \n{% endfor %}", "roles without what they say"),
        ("{% for m in messages if m.role == 'assistant' %}{{ m.content }}{% endfor %}", "answers alone"),
        ("{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}", "parts alone"),
        ("{% for i in range(10**12) %}x{% endfor %}", "never ends"),
    ],
)
def test_a_template_that_can_never_work_stops_the_export(source: str, reason: str) -> None:
    """In one line that says what to do."""
    with pytest.raises(ChatTemplateError, match="take it out of the checkpoint") as caught:
        template_findings(source, {})
    one_line(caught.value)
    assert reason


@pytest.mark.parametrize(
    ("source", "line", "reason"),
    [
        (None, "no chat template", "a base model"),
        (REFUSES_SYSTEM, "no system (tried: a system message); such requests will be answered 400", "no system role"),
        (PLAIN, "no form for tools: the system message will describe them", "knows no tools"),
        (REFUSES_SYSTEM, "no form for tools: the first user message will describe them", "neither"),
        (
            KNOWN.replace("messages", "messages[1:]"),
            "leaves out what the user says (tried: a single question)",
            "drops the first message",
        ),
        (PLAIN.replace("m.content", "m.content | upper"), "leaves out what the user says", "changes what they say"),
        (KNOWN + "{% if x %}{{ x | bogus }}{% endif %}", "the filter 'bogus'", "a filter that is not there"),
        (KNOWN + "{% if x %}{{ x is not bogus }}{% endif %}", "the test 'bogus'", "a test that is not there"),
        (KNOWN + "{% if x %}{{ x.encode('utf8') }}{% endif %}", "the method 'encode'", "a method of Python"),
        (KNOWN + "{% if x %}{{ lipsum(3) }}{% endif %}", "the function 'lipsum'", "a function of Jinja"),
    ],
)
def test_what_a_template_does_not_take_is_said(source: str | None, line: str, reason: str) -> None:
    """The export goes on."""
    assert any(line in finding for finding in template_findings(source, {})), reason


def test_known_names_are_not_complained_of() -> None:
    """Attributes, own macros, keywords in front of brackets, and names in texts."""
    source = KNOWN + (
        "{% macro own(a) %}{{ a.items }}{% endmacro %}{{ own(1) }}{% if x in ('a', 'b') or not (y) %}z.f(){% endif %}"
        "{{ 'w.bogus(1) | bogus' | upper | tojson }}{{ range(1) | list }}{{ namespace(a=1).a }}{# b | c #}"
        "{% for y in [1] %}{{ loop.cycle(1) }}{% endfor %}"
        "{{ x is defined }}{{ x is not none }}{{ 'a'.rsplit('a')[0].strip().removeprefix('x') }}"
    )
    assert template_findings(source, {}) == []
