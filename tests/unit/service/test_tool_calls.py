"""The parser of calls: however the text is cut into pieces, the same calls and the same content come out."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.tool_calls import Delta, ToolCallParser

ARGUMENTS = [{"city": "Oslo"}, {"text": 'a "quoted" }\n</tool_call> end'}, {}, {"nested": {"list": [1, "}"]}}]


def call_text(name: str, arguments: Any) -> str:
    """A call as the constraint lets the model write it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


def parse(pieces: list[str], *, is_cut: bool = False) -> tuple[str, list[tuple[str, str]]]:
    """Content and calls (name, arguments) of a text in pieces."""
    parser = ToolCallParser()
    deltas: list[Delta] = [delta for piece in pieces for delta in parser.push(piece)]
    deltas += parser.flush(is_cut=is_cut)
    calls: list[list[str]] = []
    for part in (call for delta in deltas for call in delta.get("tool_calls", ())):
        if "id" in part:
            assert part["index"] == len(calls)
            calls.append([part["function"]["name"], ""])
        calls[part["index"]][1] += part["function"]["arguments"]
    content = "".join(delta.get("content", "") for delta in deltas)
    return content, [(name, arguments) for name, arguments in calls]


@given(
    st.text(alphabet="ab<tool_cal>\n {", max_size=20).filter(lambda text: "<tool_call>" not in text),
    st.lists(st.sampled_from(ARGUMENTS), max_size=3),
    st.lists(st.integers(0, 300), max_size=12),
)
def test_any_cut_gives_the_same_content_and_calls(text: str, arguments: list[Any], cuts: list[int]) -> None:
    """Free text, then calls separated by newlines; markers may be cut anywhere."""
    whole = text + "\n".join(call_text(f"f{index}", value) for index, value in enumerate(arguments))
    ends = sorted({cut for cut in cuts if cut < len(whole)})
    pieces = [whole[start:end] for start, end in zip([0, *ends], [*ends, len(whole)], strict=True)]
    content, calls = parse(pieces)
    assert (content, calls) == parse([whole])
    assert [(name, json.loads(found)) for name, found in calls] == [
        (f"f{index}", value) for index, value in enumerate(arguments)
    ]
    assert content.rstrip("\n") == text.rstrip("\n")


def test_arguments_are_told_as_they_come() -> None:
    """The name whole, then the arguments piece by piece."""
    parser = ToolCallParser()
    assert parser.push('<tool_call>\n{"name": "get_we') == []
    (start,) = parser.push('ather", "arguments": ')
    assert start["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": ""}
    assert parser.push('{"city": ')[0]["tool_calls"] == [{"index": 0, "function": {"arguments": '{"city": '}}]


@pytest.mark.parametrize("text", ["<tool_", "<tool_call>\n", '<tool_call>\n{"na', "a < b"])
def test_text_that_only_looks_like_a_call_is_content_in_the_end(text: str) -> None:
    """Nothing is swallowed when an answer ends early."""
    assert parse(list(text)) == (text, [])


def test_a_call_cut_by_the_length_keeps_what_it_had() -> None:
    """The arguments so far are told; a name that was cut is not."""
    text = call_text("f", {"city": "Oslo"})
    assert parse([text[: text.index("Oslo") + 2]], is_cut=True) == ("", [("f", '{"city": "Os')])
    assert parse([text[: text.index('f"') + 1]], is_cut=True) == ("", [])


CUT_ANSWERS = [
    pytest.param("", [{"city": "Oslo"}], id="only a call: all of the beginning is markup"),
    pytest.param("Let me see.\n", [{}], id="text before it: the newline belongs to the call"),
    pytest.param("", [{"a": {"b": ["}", "{"]}}, {"c": 1}], id="two calls: braces inside strings end nothing"),
    pytest.param("", [{"text": "</tool_call>\n}"}, {}], id="arguments that spell the call's end"),
    pytest.param("", [{"q": 'a \\" \\\\ }'}], id="escaped quotes and backslashes before a brace"),
    pytest.param("a < b <tool\n", [{"é": "😀"}], id="text that looks like a call's beginning"),
]


@pytest.mark.parametrize("size", [1, 3, 1_000])
@pytest.mark.parametrize(("text", "arguments"), CUT_ANSWERS)
def test_an_answer_cut_anywhere_shows_no_markup(text: str, arguments: list[Any], size: int) -> None:
    """At every length: content is the text's beginning, arguments are the beginning of their JSON, no brace beside."""
    whole = text + "\n".join(call_text(f"f{index}", value) for index, value in enumerate(arguments))
    texts = [json.dumps(value) for value in arguments]
    for length in range(len(whole) + 1):
        cut = whole[:length]
        content, calls = parse([cut[at : at + size] for at in range(0, length, size)], is_cut=True)
        assert text.startswith(content)
        assert "tool_call" not in content
        ends = [whole.index(told) + len(told) for told in texts]
        for index, (name, told) in enumerate(calls):
            assert name == f"f{index}"
            assert texts[index].startswith(told)
            assert index == len(calls) - 1 or told == texts[index], "only the last call may be incomplete"
            assert (told == texts[index]) == (length >= ends[index]) or arguments.count(arguments[index]) > 1


def test_json_of_an_answer_with_a_form_is_content_to_its_end() -> None:
    """With `response_format` a call begins the answer or there is none: nothing of the JSON is held back or dropped."""
    for text in ('{"a": "<tool_call>', '{"a": "\\n<tool', '["<"'):
        parser = ToolCallParser(calls_follow_text=False)
        deltas = [delta for character in text for delta in parser.push(character)]
        assert "".join(delta["content"] for delta in deltas) == text
        assert parser.flush(is_cut=True) == []
