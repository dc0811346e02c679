"""LocalModel: answers without a server, over a fake decoder: where they end, and what they say about it."""

import pytest

from model.chat import ChatTemplate
from model.sampling import SamplingParams
from model.tokenizer import Tokenizer
from service.engine.request_check import InvalidRequestError
from service.local import LocalModel, LocalModelError
from tests.support.engines import make_engine
from tests.support.fake_decoder import END_ID, FAKE_CONFIG, FakeDecoder, expected_tokens
from tests.support.tiny_checkpoint import CHAT_TEMPLATE, tiny_tokenizer_json

GREEDY = SamplingParams(temperature=0)


def local_model(*, template: str | None = CHAT_TEMPLATE, eos: frozenset[int] = frozenset({END_ID})) -> LocalModel:
    """A model of one row whose next token is a function of those before it."""
    engine, _ = make_engine(1, decoder=FakeDecoder(1))
    chat = None if template is None else ChatTemplate(template, {})
    return LocalModel(Tokenizer(tiny_tokenizer_json()), chat, eos, engine)


def test_an_answer_is_cut_at_the_limit_and_says_how_to_get_more() -> None:
    """A model may never come to an end."""
    answer = local_model().continue_text("abc", 5, GREEDY)
    pieces = list(answer)
    assert len(pieces) >= 5
    assert answer.cut_note == "the answer is cut after 5 tokens; --max-tokens allows more"


def test_an_answer_is_cut_at_the_context_and_says_that_it_is_full() -> None:
    """More tokens would not help."""
    model = local_model()
    prompt = "x" * (FAKE_CONFIG.context_tokens - 3)
    answer = model.continue_text(prompt, 1024, GREEDY)
    list(answer)
    assert answer.cut_note == f"the answer is cut: the context of {FAKE_CONFIG.context_tokens} tokens is full"


def test_an_answer_ends_at_each_of_the_models_end_tokens() -> None:
    """Any of them, not only the first; nothing is said, and the token is not shown."""
    model = local_model()
    ids = expected_tokens(model.tokenizer.encode("abc"), 8)
    model = local_model(eos=frozenset({END_ID, ids[4]}))
    answer = model.continue_text("abc", 100, GREEDY)
    shown = "".join(answer)
    assert answer.cut_note is None
    assert shown == model.tokenizer.decode(ids[: ids.index(ids[4])])


def test_the_next_answer_does_not_wait_for_one_that_was_left() -> None:
    """There is one row, which an answer left behind would hold."""
    model = local_model()
    for _ in range(3):
        for _piece in model.reply([{"role": "user", "content": "hello"}], 50, GREEDY):
            break
    assert len(list(model.reply([{"role": "user", "content": "hello"}], 5, GREEDY))) >= 5
    assert not model.engine.has_work


def test_a_conversation_needs_a_template() -> None:
    """Its roles mean nothing to a model that was not taught them."""
    with pytest.raises(LocalModelError, match="has no chat template; use `attend generate --raw`"):
        local_model(template=None).reply([{"role": "user", "content": "hello"}], 5, GREEDY)


@pytest.mark.parametrize("text", ["", "x" * FAKE_CONFIG.context_tokens], ids=["empty", "too long"])
def test_a_prompt_that_cannot_run_is_refused(text: str) -> None:
    """Before a step is made."""
    with pytest.raises(InvalidRequestError):
        local_model().continue_text(text, 5, GREEDY)


def test_an_engine_that_fails_is_an_error_and_not_a_short_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text so far is no answer."""
    decoder = FakeDecoder(1)
    engine, _ = make_engine(1, decoder=decoder)
    model = LocalModel(Tokenizer(tiny_tokenizer_json()), None, frozenset(), engine)
    answer = iter(model.continue_text("abc", 50, GREEDY))
    next(answer)
    monkeypatch.setattr(decoder, "decode", _broken)
    with pytest.raises(LocalModelError, match="the model failed"):
        list(answer)


def _broken(*_arguments: object, **_options: object) -> None:
    raise RuntimeError("no session")
