"""What is added to raw prompts: as the tokenizer's files and the GGUF's metadata ask, and never twice."""

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from tokenizers import processors

from model.chat import ChatTemplate
from model.checkpoint import read_checkpoint
from model.tokenizer import Tokenizer
from tests.support.tiny_checkpoint import (
    END_TOKEN,
    edit_json,
    tiny_config_json,
    tiny_tensors,
    tiny_tokenizer_json,
    write_chatting_checkpoint,
)
from tests.support.tiny_gguf import gguf_vocabulary, write_tiny_gguf

BOS, BOS_ID, END_ID = "<s>", 257, 256
TEXT = Tokenizer(tiny_tokenizer_json()).encode("hi")
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"


def with_post_processor(folder: Path, single: str) -> None:
    """Let tokenizer.json itself add tokens."""
    from tokenizers import Tokenizer as FastTokenizer

    tokenizer = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    special = [(BOS, BOS_ID), (END_TOKEN, END_ID)]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(
    ("single", "changes", "before", "behind"),
    [
        pytest.param(None, {}, [], [], id="nothing said: as tokenizer.json does"),
        pytest.param(f"{BOS} $A", {}, [BOS_ID], [], id="only the post-processor says so: Llama 3"),
        pytest.param(None, {"add_bos_token": True}, [BOS_ID], [], id="asked for, and the post-processor is missing"),
        pytest.param(f"{BOS} $A", {"add_bos_token": True}, [BOS_ID], [], id="asked for and done already: once"),
        pytest.param(f"{BOS} $A", {"add_bos_token": False}, [], [], id="forbidden, but the post-processor adds it"),
        pytest.param(None, {"add_eos_token": True}, [], [END_ID], id="an end token too"),
        pytest.param(f"{BOS} $A {END_TOKEN}", {"add_eos_token": False}, [BOS_ID], [], id="one side only is forbidden"),
        pytest.param(None, {"add_bos_token": True, "add_eos_token": True}, [BOS_ID], [END_ID], id="both sides"),
        pytest.param(None, {"add_bos_token": None}, [], [], id="null is absence"),
        pytest.param(
            f"{BOS} $A", {"add_bos_token": "yes"}, [BOS_ID], [], id="no true or false: as tokenizer.json does"
        ),
    ],
)
def test_raw_prompts_begin_and_end_as_the_tokenizers_files_say(
    tmp_path: Path, single: str | None, changes: dict[str, Any], before: list[int], behind: list[int]
) -> None:
    """The bundle's tokenizer.json does it, so that serving needs no setting."""
    folder = write_chatting_checkpoint(tmp_path / "m", BOS, bos_token=BOS, **changes)
    if single is not None:
        with_post_processor(folder, single)
    tokenizer = Tokenizer(read_checkpoint(folder).tokenizer_json)
    assert tokenizer.encode("hi") == [*before, *TEXT, *behind]
    assert tokenizer.encode("hi", add_special_tokens=False) == TEXT


def test_a_tokenizer_that_does_what_is_wanted_stays_as_it_is(tmp_path: Path) -> None:
    """Nothing is rewritten without need."""
    folder = write_chatting_checkpoint(tmp_path / "m", BOS, bos_token=BOS, add_bos_token=True)
    with_post_processor(folder, f"{BOS} $A")
    assert json.loads(read_checkpoint(folder).tokenizer_json) == json.loads((folder / "tokenizer.json").read_text())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("hi", [BOS_ID, *TEXT], id="plain"),
        pytest.param(f"{BOS}hi", [BOS_ID, *TEXT], id="the client wrote it: not doubled"),
        pytest.param(f"{BOS}{BOS}hi", [BOS_ID, BOS_ID, *TEXT], id="written twice: as written"),
        pytest.param(f"hi{BOS}", [BOS_ID, *TEXT, BOS_ID], id="written elsewhere: added as well"),
        pytest.param("", [BOS_ID], id="the empty text"),
        pytest.param(BOS, [BOS_ID], id="nothing but the token"),
    ],
)
def test_a_start_token_is_never_doubled(tmp_path: Path, text: str, expected: list[int]) -> None:
    """Where a prompt begins with it already, none is added."""
    folder = write_chatting_checkpoint(tmp_path / "m", BOS, bos_token=BOS, add_bos_token=True)
    assert Tokenizer(read_checkpoint(folder).tokenizer_json).encode(text) == expected


@pytest.mark.parametrize("text", ["hi", f"hi{END_TOKEN}"])
def test_an_end_token_is_never_doubled(tmp_path: Path, text: str) -> None:
    """Where a prompt ends with it already, none is added."""
    folder = write_chatting_checkpoint(tmp_path / "m", add_eos_token=True)
    read = read_checkpoint(folder)
    assert Tokenizer(read.tokenizer_json).encode(text) == [*TEXT, END_ID]
    assert "raw prompts end with '<|end|>'" in read.notes[0]


def test_a_template_that_writes_the_start_token_gets_no_second_one(tmp_path: Path) -> None:
    """Rendered conversations are tokenised as they are; asked for special tokens, too, there is one."""
    folder = write_chatting_checkpoint(tmp_path / "m", BOS, bos_token=BOS, add_bos_token=True, chat_template=TEMPLATE)
    read = read_checkpoint(folder)
    rendered = ChatTemplate(TEMPLATE, read.special_tokens).render([{"role": "user", "content": "hi"}])
    tokenizer = Tokenizer(read.tokenizer_json)
    for add in (False, True):
        assert tokenizer.encode(rendered, add_special_tokens=add).count(BOS_ID) == 1


@pytest.mark.parametrize("bos", [None, "<nowhere>"])
def test_a_start_token_that_cannot_be_added_is_named(tmp_path: Path, bos: str | None) -> None:
    """Asked for, but the tokenizer has none of that name."""
    read = read_checkpoint(write_chatting_checkpoint(tmp_path / "m", bos_token=bos, add_bos_token=True))
    assert Tokenizer(read.tokenizer_json).encode("hi") == TEXT
    assert read.notes[0].startswith("add_bos_token is true, but ")


def test_special_tokens_of_the_map_are_known_to_templates(tmp_path: Path) -> None:
    """Some folders name their start token in special_tokens_map.json alone."""
    folder = write_chatting_checkpoint(tmp_path / "m", BOS, add_bos_token=True)
    edit_json(folder / "special_tokens_map.json", bos_token={"content": BOS}, pad_token="<pad>")
    read = read_checkpoint(folder)
    assert read.special_tokens == {"bos_token": BOS, "eos_token": END_TOKEN, "pad_token": "<pad>"}
    assert Tokenizer(read.tokenizer_json).encode("hi") == [BOS_ID, *TEXT]


NEW = len(gguf_vocabulary())


@pytest.mark.parametrize(
    ("pre_tokenizer", "extra", "before", "behind"),
    [
        pytest.param("gpt-2", {}, [], [], id="unsaid: nothing is added"),
        pytest.param("gpt-2", {"tokenizer.ggml.add_bos_token": True}, [NEW], [], id="asked for"),
        pytest.param("smollm", {"tokenizer.ggml.add_bos_token": False}, [], [], id="forbidden"),
        pytest.param("llama-bpe", {}, [NEW], [], id="unsaid, but a Llama 3 tokenizer begins texts with it"),
        pytest.param("llama-bpe", {"tokenizer.ggml.add_bos_token": False}, [], [], id="Llama 3, forbidden"),
        pytest.param("gpt-2", {"tokenizer.ggml.add_eos_token": True}, [], [NEW - 2], id="an end token"),
    ],
)
def test_raw_prompts_of_a_gguf_begin_and_end_as_its_metadata_says(
    tmp_path: Path, pre_tokenizer: str, extra: dict[str, Any], before: list[int], behind: list[int]
) -> None:
    """The twin of tokenizer_config.json's settings."""
    config = tiny_config_json(vocab_size=NEW + 1)
    bos = {"tokenizer.ggml.bos_token_id": NEW, **extra}
    more = {BOS: TokenType.CONTROL}
    file = write_tiny_gguf(
        tmp_path / "m.gguf", config, tiny_tensors(config), pre_tokenizer=pre_tokenizer, extra=bos, more_tokens=more
    )
    tokenizer = Tokenizer(read_checkpoint(file).tokenizer_json)
    assert tokenizer.encode("hi") == [*before, *tokenizer.encode("hi", add_special_tokens=False), *behind]
    assert tokenizer.encode(f"{BOS}hi")[: len(before) + 1].count(NEW) == 1
