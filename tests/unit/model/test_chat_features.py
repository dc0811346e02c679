"""What transformers adds to Jinja, and where minijinja would write something else: each as transformers renders it."""

from typing import Any

import pytest

from model.chat import ChatTemplate, ChatTemplateError
from tests.support.by_transformers import rendered_by_transformers
from tests.support.errors import one_line

ARGUMENTS: dict[str, Any] = {"n": 1.0, "big": 10**25, "tiny": 1e-7, "huge": 1e20, "b": True, "none": None, "l": []}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": ' hi <b>"x" é\n'},
    {"role": "assistant", "content": "a</think>b", "x": {**ARGUMENTS, "s": 'it\'s "q" é <b>'}},
    {"role": "user", "content": "bye"},
]
SOURCES: dict[str, list[str]] = {
    "the generation tag": [
        "{% generation %}x{% endgeneration %}",
        "{%- generation -%} x {%- endgeneration -%} y",
        "{% for m in messages %}{% if m.role == 'user' %}{% generation %}u{% endgeneration %}{% endif %}{% endfor %}",
        "{% for m in messages %}{% generation %}{{ loop.index }}{{ m.role }}\n{% endgeneration %}{% endfor %}",
        "{{ '{% generation %}' }}{% raw %}{% generation %}{% endraw %}{# {% generation %} #}",
    ],
    "tojson with arguments": [
        "{{ messages | tojson }}",
        "{{ messages | tojson(indent=4) }}",
        "{{ messages | tojson(ensure_ascii=True) }}",
        "{{ messages | tojson(separators=(',', ':')) }}",
        "{{ messages | tojson(sort_keys=True, indent=2, ensure_ascii=False) }}",
        "{{ messages | map('tojson') | join(', ') }}",
        "{{ '<&>\\'' | tojson }}",
    ],
    "numbers and constants as Python writes them": [
        "{% set x = messages[2].x %}{{ x.n }} {{ x.n | tojson }} {{ x.n | string }} {{ 'a' ~ x.n }}",
        "{% set x = messages[2].x %}{{ x.tiny }} {{ x.huge }} {{ x.big }}",
        "{% for k, v in messages[2].x | items %}{{ k }}={{ v }};{{ v | tojson }}\n{% endfor %}",
        "{{ messages[2].x }}",
        "{{ true }} {{ none }} {{ [1, 'a', true, none, 1.5] }} {{ {'a': none} }} {{ 4 / 2 }} {{ 7 // 2 }} {{ -7 % 3 }}",
        "{% set x = messages[2].x %}{{ x.n is number }} {{ x.n is float }} {{ x.b is number }} {{ x.l is number }}",
    ],
    "loops": [
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{% break %}{{ m.role }}{% endfor %}",
        "{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ loop.length }}{{ loop.revindex }}{% endfor %}",
        "{% for m in messages %}{{ loop.previtem.role if loop.previtem is defined }}{{ loop.last }}{% endfor %}",
        "{% for m in messages if m.role == 'x' %}a{% else %}none{% endfor %}",
        "{% for m in messages[::-1] %}{{ m.role }}{{ loop.cycle('a', 'b') }}{% endfor %}",
        "{% for i in range(1, 10, 3) %}{{ i }}{% endfor %}",
        "{%- for m in messages -%}\n{{- m.role }}\n{% endfor -%}\nend\n",
    ],
    "namespaces, sets, macros": [
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{% set x %}block {{ 1 }}{% endset %}{{ x }}{% set a, b = 1, 2 %}{{ a }}{{ b }}",
        "{% macro f(a, b='d') %}{{ a }}-{{ b }}{% endmacro %}{{ f('x') }}{{ f(b=1, a=2) }}",
        "{% macro f(a) %}[{{ caller() }}{{ a }}]{% endmacro %}{% call f(1) %}in{% endcall %}",
        "{% set a = 1 %}{% for i in range(2) %}{% set a = 5 %}{% endfor %}{{ a }}{% with a = 2 %}{{ a }}{% endwith %}",
        "{% filter upper %}abc{% endfilter %}{% if true %}{% set z = 7 %}{% endif %}{{ z }}",
    ],
    "methods of texts": [
        "{{ 'a,b,c'.rsplit(',', 1)[0] }} {{ 'a,b,c'.split(',', 1)[1] }} {{ 'a b c'.split(maxsplit=1) }}",
        "{{ 'a-b'.partition('-')[2] }} {{ 'a-b-c'.rpartition('-')[0] }}",
        "{{ 'abc'.index('c') }} {{ 'abca'.rindex('a') }} {{ [1, 2].index(2) }}",
        "{{ 'abc'.removeprefix('a').removesuffix('c').upper() }} {{ ('a' ~ 'b').swapcase() }}",
        "{{ messages[0].content.removesuffix('.').split(' ')[-1] }} {{ 'x'.center(5) }}|{{ '7'.zfill(3) }}",
        "{{ 'abc'.startswith(('x', 'a')) }} {{ ' x '.strip() }}|{{ 'a'.isdigit() }} {{ 'a {}'.format(1) }}",
        "{% if messages[2].content.partition('</think>')[2] == 'b' %}{{ 'a b'.rsplit(' ')[0] }}{% endif %}",
        "{{ {'a': {'b': 'x.y'.rsplit('.')}} }}",
    ],
    "filters": [
        "{{ x | default('d', boolean=True) }} {{ '' | default('d', true) }} {{ none | default(default_value='e') }}",
        "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('|') }}",
        "{{ messages | rejectattr('role', 'in', ['user']) | list | length }}",
        "{{ messages | map(attribute='role') | unique | list }}",
        "{{ 'hello world' | title }} {{ 'hello' | capitalize }} {{ 'a\nb\n\nc' | indent }}",
        "{{ 'a\nb' | indent(2, first=true) }} {{ [3, 1] | sort }} {{ [1, 2] | first }} {{ 'abc' | reverse }}",
        "{{ messages[0] | dictsort }} {{ messages[0] | items | list }} {{ messages[0].items() | list }}",
        "{{ [1, 2] | string }} {{ '<b>' | safe }} {{ 5.567 | round(1) }}",
    ],
    "tests and missing values": [
        "{{ x is defined }} {{ messages[0].x is defined }} {{ tools is none }} {{ documents is none }} {{ x is none }}",
        "{{ 'a' is sequence }} {{ {} is sequence }} {{ [] is iterable }} {{ 'a' is string }} {{ {} is mapping }}",
        "{{ x }}|{{ messages[0].x }}|{{ messages[9] }}|{{ x ~ 'a' }}|{{ 'a' if x else 'b' }}|{{ 'a' if x }}",
        "{{ 'role' in messages[0] }} {{ 'z' not in 'abc' }} {{ messages[0].get('x', 'd') }} {{ not x }} {{ x or 'y' }}",
        "{{ 1 if 0 else 2 if 0 else 3 }} {{ 'hello'[1:3] }} {{ 'hello'[-1] }} {{ messages[1:] | length }}",
    ],
    "white space": [
        "  {% if true %}\n  a\n  {% endif %}\nx\n",
        "{# comment #}a\n{#- comment -#}  a",
        "{%- if true -%}  a  {%+ if true +%} b {% endif %}{% endif %}",
        '{{ "multi\nline" }}\n\n{{ "\\t|" }}',
        "a\n\n{%- set x = 1 %}\n\nb\n\n\n",
    ],
}
CASES = [(kind, source) for kind, sources in SOURCES.items() for source in sources]


@pytest.mark.parametrize(("kind", "source"), CASES, ids=[f"{kind}-{at}" for at, (kind, _) in enumerate(CASES)])
def test_a_feature_renders_as_in_transformers(kind: str, source: str) -> None:
    """Character for character, numbers and white space included."""
    expected = rendered_by_transformers(source, MESSAGES)
    assert expected is not None
    assert ChatTemplate(source, {}).render(MESSAGES) == expected, kind


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ missing.attr }}", "an attribute of nothing"),
        ("{{ messages[0].x.y }}", "an attribute of a missing member"),
        ("{{ raise_exception('no') }}", "a refusal"),
        ("{{ 'a' + 1 }}", "a text and a number"),
        ("{{ missing() }}", "a function that is not there"),
        ("{{ x.rsplit(',') }}", "a method of nothing"),
        ("{{ messages.rsplit(',') }}", "a method of texts, of a list"),
        ("{{ [].__class__.mro() }}", "Python's own"),
    ],
)
def test_what_transformers_refuses_is_refused(source: str, reason: str) -> None:
    """In one line."""
    assert rendered_by_transformers(source, MESSAGES) is None, reason
    with pytest.raises(ChatTemplateError) as caught:
        ChatTemplate(source, {}).render(MESSAGES[:2])
    one_line(caught.value)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ 'x'.center(10**9) }}", "a text of a gigabyte"),
        ("{{ 'x'.zfill(2**40) }}", "another one"),
        ("{{ [1] | tojson(indent=10**9) }}", "one in JSON"),
        ("{{ messages | tojson(indent=-1) }}", "a negative indent"),
        ("{{ 'x' | _method('format_map', messages[0]) }}", "a method that reaches further"),
        ("{{ 'x' | _method('encode') }}", "another one"),
        ("{{ messages | _method('append', 1) }}", "a method of a list"),
    ],
)
def test_what_is_added_reaches_no_further(source: str, reason: str) -> None:
    """Fuel counts a template's steps, not what a step may cost."""
    with pytest.raises(ChatTemplateError) as caught:
        ChatTemplate(source, {}).render(MESSAGES[:2])
    one_line(caught.value)
    assert reason
