"""GET /tokenizer_info, and the other routes that lm-evaluation-harness's remote tokenizer asks beside it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.support.fake_decoder import END_ID, FAKE_CONFIG, FakeDecoder
from tests.support.fake_service import fake_app
from tests.support.requests import TOKENIZER
from tests.support.tiny_checkpoint import CHAT_TEMPLATE


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """A client of the whole app; the bundle names no special tokens."""
    with TestClient(fake_app(tmp_path, FakeDecoder())) as client:
        yield client


def test_the_tokenizer_is_told_as_its_configuration_would(client: TestClient) -> None:
    """Every name that clients look up is there; an end of text is known from the model where nothing names it."""
    assert client.get("/tokenizer_info").json() == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": FAKE_CONFIG.context_tokens,
        "vocab_size": FAKE_CONFIG.vocab_size,
        "bos_token": None,
        "eos_token": TOKENIZER.token_text(END_ID),
        "pad_token": None,
        "unk_token": None,
        "chat_template": CHAT_TEMPLATE,
    }


def test_a_model_without_a_template_has_none(tmp_path: Path) -> None:
    """Null, so that a client says so itself."""
    with TestClient(fake_app(tmp_path, FakeDecoder(), chat_template=None)) as client:
        assert client.get("/tokenizer_info").json()["chat_template"] is None


@pytest.mark.parametrize("path", ["/tokenizer_info", "//tokenizer_info", "/tokenizer_info/"])
def test_it_is_found_behind_any_base_url(client: TestClient, path: str) -> None:
    """Evaluators cut their base URLs together from completions' addresses."""
    assert client.get(f"http://testserver{path}").status_code == 200


def test_the_end_of_text_is_one_token_and_comes_back_as_itself(client: TestClient) -> None:
    """What the harness does to learn the id: the text's first token, without what the model's tokenizer adds."""
    end = client.get("/tokenizer_info").json()["eos_token"]
    tokens = client.post("/tokenize", json={"prompt": end, "add_special_tokens": False}).json()["tokens"]
    assert tokens == [END_ID]
    assert client.post("/detokenize", json={"tokens": tokens}).json()["prompt"] == end


@pytest.mark.parametrize("text", ["test", " leading space", "two\nlines", "tschüss 🙂", "a" * 300])
def test_a_text_survives_the_way_there_and_back(client: TestClient, text: str) -> None:
    """With the bodies that the harness sends, and no others."""
    tokens = client.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()["tokens"]
    assert isinstance(tokens, list)
    assert client.post("/detokenize", json={"tokens": tokens}).json()["prompt"] == text
