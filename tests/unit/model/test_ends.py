"""Where answers end: the union of all files that name an end, and the chat template's own end of turn."""

from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType

from model.checkpoint import Checkpoint, read_checkpoint
from model.config import UnsupportedModelError
from tests.support.errors import one_line
from tests.support.tiny_checkpoint import (
    edit_json,
    tiny_config_json,
    tiny_tensors,
    write_chatting_checkpoint,
    write_tiny_checkpoint,
)
from tests.support.tiny_gguf import END_TOKEN, gguf_vocabulary, write_tiny_gguf

IM_START, IM_END = "<|im_start|>", "<|im_end|>"  # ids 257 and 258
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_BETWEEN = (  # closes only turns that another one follows
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% if not loop.last %}<|im_end|>\n{% endif %}{% endfor %}"
)
NEEDS_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}" + CHATML
WITH_DEFAULT_SYSTEM = "<|im_start|>system\nBe kind.<|im_end|>\n" + CHATML
SYSTEM_AND_BETWEEN = "<|im_start|>system\nBe kind.<|im_end|>\n" + CHATML_BETWEEN
CALLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.tool_calls %}{% for call in m.tool_calls %}{{ call.function.name }} {{ call.function.arguments | tojson }}"
    "{% endfor %}CLOSE{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}"
)
NO_OPENER = "{% for message in messages %}{{ message.role }}: {{ message.content }}<|im_end|>{% endfor %}"
BLANKS_BEFORE = CHATML.replace("<|im_end|>", " \n\n<|im_end|>")


@pytest.mark.parametrize(
    ("generation", "config", "tokenizer", "token_map", "expected"),
    [
        pytest.param(5, 6, ..., ..., (5, 6), id="both files, an id each: Llama 3's way"),
        pytest.param([5, 6], 7, ..., ..., (5, 6, 7), id="a list and an id: instruct models list several"),
        pytest.param(None, [7, 8], ..., ..., (7, 8), id="null in one, a list in the other"),
        pytest.param(..., ..., END_TOKEN, ..., (256,), id="the tokenizer alone names it, as text"),
        pytest.param(5, 5, {"content": END_TOKEN, "lstrip": False}, ..., (5, 256), id="as an object: older files"),
        pytest.param(5, ..., None, {"eos_token": END_TOKEN}, (5, 256), id="special_tokens_map.json names it"),
        pytest.param(5, 5, IM_END, {"eos_token": {"content": END_TOKEN}}, (5, 258, 256), id="two files disagree: both"),
        pytest.param([256, 256, 5], [5], END_TOKEN, ..., (256, 5), id="named again and again: once"),
    ],
)
def test_ends_are_the_union_of_all_files(
    tmp_path: Path, generation: Any, config: Any, tokenizer: Any, token_map: Any, expected: tuple[int, ...]
) -> None:
    """Whichever file names an end, it ends answers."""
    folder = write_chatting_checkpoint(tmp_path / "m", IM_START, IM_END, eos_token=tokenizer, chat_template=None)
    edit_json(folder / "config.json", eos_token_id=config)
    edit_json(folder / "generation_config.json", eos_token_id=generation)
    if token_map is not ...:
        edit_json(folder / "special_tokens_map.json", **token_map)
    assert read_checkpoint(folder).config.eos_token_ids == expected


@pytest.mark.parametrize(
    "template",
    [
        pytest.param(CHATML, id="ChatML over a base model's <|endoftext|>: the commonest"),
        pytest.param(CHATML_BETWEEN, id="closes only turns that another follows"),
        pytest.param(NEEDS_SYSTEM, id="refuses conversations without a system message"),
        pytest.param(WITH_DEFAULT_SYSTEM, id="writes a system turn of its own first"),
        pytest.param(NO_OPENER, id="opens turns with plain words"),
        pytest.param(BLANKS_BEFORE, id="writes blanks before the end"),
        pytest.param(CHATML.replace("<|im_end|>", "</answer><|im_end|>"), id="writes a closing tag before the end"),
        pytest.param(CHATML.replace("<|im_end|>", ".<|im_end|>"), id="writes a full stop before the end"),
        pytest.param(CHATML.replace("message.content", "message.content | lower"), id="writes in lower case"),
        pytest.param(CHATML.replace("message.content", "message.content | upper"), id="writes in capitals"),
        pytest.param(CHATML.replace("message.content", "message.content | title"), id="capitalises words"),
        pytest.param(SYSTEM_AND_BETWEEN, id="writes a system turn, closes only turns that another follows"),
        pytest.param(CHATML_BETWEEN.replace("<|im_end|>", "##<|im_end|>"), id="text before an end between turns"),
        pytest.param(CHATML.replace("<|im_end|>", "<|im_end|><|im_start|>"), id="another token behind the end"),
        pytest.param([{"name": "default", "template": CHATML}], id="one of several named templates"),
    ],
)
def test_the_templates_own_end_of_turn_becomes_an_end_and_is_said(tmp_path: Path, template: Any) -> None:
    """A model fine-tuned to chat by a template, over a base model's files, ends its turns as it was taught to."""
    folder = write_chatting_checkpoint(tmp_path / "m", IM_START, IM_END, chat_template=template)
    read = read_checkpoint(folder)
    assert read.config.eos_token_ids == (256, 258)
    (note,) = read.notes
    assert "'<|im_end|>' (258)" in note
    assert "\n" not in note


@pytest.mark.parametrize(
    ("close", "ends"),
    [
        pytest.param("<|im_end|>", {256, 258}, id="calls end otherwise than texts"),
        pytest.param("</tool_call><|im_end|>", {256, 258}, id="behind a closing tag of plain text"),
        pytest.param("]\n<|im_end|>\n", {256, 258}, id="behind a bracket, and blanks follow"),
        pytest.param("<|tool_end|><|im_end|>", {256, 258}, id="behind a closing token: the last one ends"),
        pytest.param("<|tool_end|>", {256}, id="a closing token alone: more calls may follow"),
        pytest.param("\n", {256}, id="a newline ends calls"),
        pytest.param("<|im_start|>assistant", {256}, id="the next turn's opening follows"),
        pytest.param("<|end|>", {256}, id="calls end as texts do"),
    ],
)
def test_the_end_of_a_calls_turn_is_an_end(tmp_path: Path, close: str, ends: set[int]) -> None:
    """Otherwise a call would be followed by whatever the model makes up."""
    template = CALLS.replace("CLOSE", close)
    folder = write_chatting_checkpoint(tmp_path / "m", IM_START, IM_END, "<|tool_end|>", chat_template=template)
    read = read_checkpoint(folder)
    assert set(read.config.eos_token_ids) == ends
    assert len(read.notes) == len(ends) - 1
    assert all("ends a call with '<|im_end|>' (258)" in note for note in read.notes)


@pytest.mark.parametrize(
    ("template", "changes"),
    [
        pytest.param(CHATML, {"eos_token": IM_END}, id="it is an end already"),
        pytest.param("{% for m in messages %}{{ m.content }}\n{% endfor %}", {}, id="a newline ends turns"),
        pytest.param("{% for m in messages %}{{ m.content }}###{% endfor %}", {}, id="plain text ends turns"),
        pytest.param(
            "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}",
            {},
            id="only the next turn's opener follows",
        ),
        pytest.param(
            "{% for m in messages %}{{ m.content }}{{ bos_token }}{% endfor %}",
            {"bos_token": IM_START},
            id="the start token follows",
        ),
        pytest.param(
            "{% for m in messages %}<|im_start|>{{ m.role }}<|tool_sep|>{{ m.content }}\n{% endfor %}",
            {},
            id="an opening of two tokens follows",
        ),
        pytest.param(
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n{% endfor %}<|im_start|>assistant\n",
            {},
            id="the next answer's opening follows always",
        ),
        pytest.param("{{ raise_exception('never') }}", {}, id="it refuses every conversation"),
        pytest.param("{{ messages[0].content }}", {}, id="it never shows what the assistant said"),
    ],
)
def test_nothing_but_an_end_of_turn_is_added(tmp_path: Path, template: str, changes: dict[str, Any]) -> None:
    """A start token, a newline or the next turn's opening must not cut answers short."""
    folder = write_chatting_checkpoint(
        tmp_path / "m", IM_START, IM_END, "<|tool_sep|>", chat_template=template, **changes
    )
    read = read_checkpoint(folder)
    assert set(read.config.eos_token_ids) == {256, 258 if "eos_token" in changes else 256}
    assert len(read.notes) == ("eos_token" not in changes)
    assert all("no end of turn was found in the chat template" in note for note in read.notes)


def test_a_model_that_chats_without_any_end_is_refused(tmp_path: Path) -> None:
    """Its answers would never end; the message says where to name one."""
    folder = write_tiny_checkpoint(tmp_path / "m", eos_token_id=None)
    edit_json(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(
        UnsupportedModelError, match=r"never end; name one as eos_token_id in generation_config\.json"
    ) as e:
        read_checkpoint(folder)
    one_line(e.value)


def test_a_base_model_without_any_end_is_exported_with_a_line(tmp_path: Path) -> None:
    """Raw text needs no end, but whoever exports it should know."""
    folder = write_tiny_checkpoint(tmp_path / "m", eos_token_id=None)
    edit_json(folder / "tokenizer_config.json", eos_token=None, chat_template=None)
    read = read_checkpoint(folder)
    assert read.config.eos_token_ids == ()
    assert "no end token" in read.notes[0]


@pytest.mark.parametrize(
    ("file", "value", "named"),
    [
        pytest.param("config.json", 257, "config.json names end token id 257", id="one behind the last"),
        pytest.param(
            "generation_config.json", [256, 900], "generation_config.json names end token id 900", id="in a list"
        ),
        pytest.param("generation_config.json", -1, "end token id -1", id="negative"),
        pytest.param("config.json", "</s>", "end token id '</s>'", id="a text where an id belongs"),
        pytest.param("generation_config.json", True, "end token id True", id="true counts as 1 in Python"),
        pytest.param("generation_config.json", [[1]], r"end token id [1]", id="a list in a list"),
    ],
)
def test_an_end_outside_the_vocabulary_is_refused_with_its_file(
    tmp_path: Path, file: str, value: Any, named: str
) -> None:
    """Of another model's files, most likely."""
    folder = write_tiny_checkpoint(tmp_path / "m")
    edit_json(folder / file, eos_token_id=value)
    with pytest.raises(UnsupportedModelError) as caught:
        read_checkpoint(folder)
    assert named in one_line(caught.value)


def test_an_eos_text_outside_the_vocabulary_is_named(tmp_path: Path) -> None:
    """It cannot end anything; the ids of other files still do."""
    folder = write_tiny_checkpoint(tmp_path / "m")
    edit_json(folder / "tokenizer_config.json", eos_token="</s>")
    read = read_checkpoint(folder)
    assert read.config.eos_token_ids == (256,)
    assert read.notes[0] == (
        "tokenizer_config.json's eos_token '</s>' is not in the vocabulary of 257; it ends nothing"
    )


@pytest.mark.parametrize("template", [CHATML, CHATML_BETWEEN, NEEDS_SYSTEM, WITH_DEFAULT_SYSTEM, NO_OPENER])
def test_a_template_whose_tokens_the_model_lacks_is_refused(tmp_path: Path, template: str) -> None:
    """Tokens added to the tokenizer and not to the weights: every chat would fail."""
    folder = write_chatting_checkpoint(tmp_path / "m", IM_START, IM_END, chat_template=template)
    write_tiny_checkpoint(tmp_path / "small")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "small" / name).replace(folder / name)
    with pytest.raises(UnsupportedModelError, match=r"but the model's vocabulary has 257 tokens") as caught:
        read_checkpoint(folder)
    one_line(caught.value)


MORE = {"<|end_of_text|>": TokenType.CONTROL, "<|eot_id|>": TokenType.CONTROL, "<|eom_id|>": TokenType.CONTROL}
FIRST = len(gguf_vocabulary())
END = gguf_vocabulary().index(END_TOKEN)


def read_gguf(
    folder: Path, extra: dict[str, Any], more: dict[str, TokenType], without: str | None = None
) -> Checkpoint:
    """A tiny GGUF with more tokens and metadata, read back."""
    config = tiny_config_json(vocab_size=FIRST + len(more))
    file = write_tiny_gguf(
        folder / "m.gguf", config, tiny_tensors(config), extra=extra, more_tokens=more, without=without
    )
    return read_checkpoint(file)


def key(name: str) -> str:
    """The metadata key of a special token's id."""
    return f"tokenizer.ggml.{name}_token_id"


@pytest.mark.parametrize(
    ("extra", "more", "expected"),
    [
        pytest.param(
            {key("eot"): FIRST + 1}, MORE, {END, FIRST, FIRST + 1, FIRST + 2}, id="eos and eot: Llama 3; eom is spelled"
        ),
        pytest.param(
            {key("eot"): FIRST + 1, key("eom"): FIRST + 2}, MORE, {END, FIRST, FIRST + 1, FIRST + 2}, id="eom: tools"
        ),
        pytest.param({key("eot"): END, key("eom"): END}, {}, {END}, id="the same token thrice"),
        pytest.param({}, MORE, {END, FIRST, FIRST + 1, FIRST + 2}, id="an older file: all ends by their spelling"),
        pytest.param(
            {key("eot"): FIRST + 1},
            {"<|eom_id|>": TokenType.CONTROL, "<|eot_id|>": TokenType.CONTROL},
            {END, FIRST, FIRST + 1},
            id="eot is named, <|eom_id|> is not: Llama 3.2",
        ),
        pytest.param({}, {"<EOT>": TokenType.CONTROL}, {END, FIRST}, id="a coder's <EOT>"),
        pytest.param({}, {"<|return|>": TokenType.CONTROL}, {END, FIRST}, id="<|return|> ends a channel's answer"),
        pytest.param({}, {"<|endoftext|>": TokenType.CONTROL}, {END, FIRST}, id="<|endoftext|> ends texts"),
        pytest.param({}, {"<|endoftext|>": TokenType.NORMAL}, {END}, id="the same as plain text ends nothing"),
        pytest.param({}, {"<EOT>": TokenType.USER_DEFINED}, {END}, id="<EOT> as somebody's own word ends nothing"),
        pytest.param({}, {"<|im_end|>": TokenType.CONTROL}, {END, FIRST}, id="ChatML by its spelling"),
        pytest.param({}, {"<end_of_turn>": TokenType.CONTROL}, {END, FIRST}, id="Gemma's by its spelling"),
        pytest.param({}, {"<|im_end|>": TokenType.NORMAL}, {END, FIRST}, id="spelled so, but called plain text"),
        pytest.param(
            {key("eot"): END}, {"<|im_end|>": TokenType.CONTROL}, {END}, id="an eot is named: none is guessed"
        ),
        pytest.param(
            {"tokenizer.chat_template": "{% for m in messages %}{{ m.content }}<done>{% endfor %}"},
            {"<done>": TokenType.CONTROL},
            {END, FIRST},
            id="an end that only the template knows",
        ),
    ],
)
def test_ends_of_a_gguf_are_its_eos_eot_and_eom(
    tmp_path: Path, extra: dict[str, Any], more: dict[str, TokenType], expected: set[int]
) -> None:
    """Whichever of them the file names; what it leaves unsaid is found by spelling or in the template."""
    assert set(read_gguf(tmp_path, extra, more).config.eos_token_ids) == expected


@pytest.mark.parametrize("name", ["eos", "eot", "eom", "bos"])
def test_a_special_id_outside_a_ggufs_vocabulary_is_named(tmp_path: Path, name: str) -> None:
    """Of another model's metadata, most likely."""
    with pytest.raises(UnsupportedModelError, match=f"{name}_token_id is 9999, which is not in the vocabulary of"):
        read_gguf(tmp_path, {key(name): 9999}, {})


def test_a_gguf_that_chats_without_any_end_is_refused(tmp_path: Path) -> None:
    """No eos, no eot, no spelling and none in the template."""
    template = {"tokenizer.chat_template": "{{ messages[0].content }}"}
    renamed = {"<done>": TokenType.CONTROL}
    config = tiny_config_json(vocab_size=FIRST + 1)
    file = write_tiny_gguf(
        tmp_path / "m.gguf", config, tiny_tensors(config), extra=template, more_tokens=renamed, without=key("eos")
    )
    file.write_bytes(file.read_bytes().replace(b"<|end|>", b"<|xyz|>"))
    with pytest.raises(UnsupportedModelError, match="never end") as caught:
        read_checkpoint(file)
    one_line(caught.value)
