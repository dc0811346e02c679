"""POST /v1/completions, claim by claim."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai.types import Completion

from tests.support.api_client import COMPLETIONS, Json, body_for, events_of, folded_completion
from tests.support.fake_decoder import END_ID, VOCAB_SIZE, FakeDecoder, expected_tokens
from tests.support.fake_service import fake_app
from tests.support.requests import TOKENIZER
from tests.support.spelling import says

SAMPLED = {"temperature": 1, "seed": 5}


@pytest.fixture
def decoder() -> FakeDecoder:
    """The decoder behind the client."""
    return FakeDecoder()


@pytest.fixture
def client(tmp_path: Path, decoder: FakeDecoder) -> Iterator[TestClient]:
    """A client of the whole app."""
    with TestClient(fake_app(tmp_path, decoder)) as client:
        yield client


def ask(client: TestClient, **fields: Any) -> Json:
    """An answer's body."""
    response = client.post(COMPLETIONS, json=body_for(COMPLETIONS, **fields))
    assert response.status_code == 200, response.text
    body: Json = response.json()
    if not (fields.get("echo") and "logprobs" in fields):  # the client's type has no null for the first token
        Completion.model_validate(body)
    return body


def stream(client: TestClient, **fields: Any) -> list[Json]:
    """A stream's chunks."""
    chunks = events_of(client.post(COMPLETIONS, json=body_for(COMPLETIONS, stream=True, **fields)))
    for chunk in chunks:
        Completion.model_validate({**chunk, "choices": []})
    return chunks


def texts(body: Json) -> list[str]:
    """The texts of the answers."""
    return [choice["text"] for choice in body["choices"]]


def answer_to(prompt: str, count: int = 8) -> str:
    """What the fake model says after a prompt."""
    return TOKENIZER.decode(expected_tokens(TOKENIZER.encode(prompt), count))


def test_prompts_are_answered_in_order_each_with_its_choices(client: TestClient) -> None:
    """Index counts the first prompt's choices, then the second's; usage counts each prompt once."""
    fields = {**SAMPLED, "n": 2, "ignore_eos": True}
    body = ask(client, prompt=["one", "two!"], **fields)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert texts(body)[:2] == texts(ask(client, prompt="one", **fields))
    assert texts(body)[2:] == texts(ask(client, prompt="two!", **fields))
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (3 + 4, 4 * 8)


def test_texts_and_their_token_ids_are_the_same_prompts(client: TestClient) -> None:
    """Alone and in lists."""
    ids = [TOKENIZER.encode(text) for text in ("one", "漢🙂")]
    expected = [answer_to("one"), answer_to("漢🙂")]
    assert texts(ask(client, prompt=["one", "漢🙂"])) == texts(ask(client, prompt=ids)) == expected
    assert texts(ask(client, prompt=ids[1])) == texts(ask(client, prompt=["漢🙂"])) == expected[1:]


def test_choices_differ_and_the_first_is_that_of_one_choice(client: TestClient, decoder: FakeDecoder) -> None:
    """Different seeds from one; the prompt is computed once."""
    prompt = "x" * 40
    several = ask(client, prompt=prompt, n=4, **SAMPLED)
    assert decoder.chunks == [40]
    assert len(set(texts(several))) == 4
    assert texts(several)[:1] == texts(ask(client, prompt=prompt, **SAMPLED))
    assert texts(several) == texts(ask(client, prompt=prompt, n=4, **SAMPLED))


def test_best_of_returns_the_likeliest_and_counts_all(client: TestClient) -> None:
    """By mean log-probability of a token, likeliest first, for each prompt; usage counts what was not returned."""
    fields = {"prompt": ["one", "two"], "temperature": 0.18, "seed": 1, "max_tokens": 20}
    made = ask(client, n=6, logprobs=0, **fields)["choices"]
    expected = []
    for start in (0, 6):
        means = {c["text"]: sum(c["logprobs"]["token_logprobs"]) / 20 for c in made[start : start + 6]}
        expected += sorted(means, key=lambda text, means=means: -means[text])[:2]  # type: ignore[misc]
    best = ask(client, n=2, best_of=6, **fields)
    assert texts(best) == expected
    assert [choice["index"] for choice in best["choices"]] == [0, 1, 2, 3]
    assert best["usage"]["completion_tokens"] == 12 * 20
    assert {choice["logprobs"] for choice in best["choices"]} == {None}


def test_best_of_equal_to_n_is_n(client: TestClient) -> None:
    """Nothing is sorted where nothing is left out; that can be streamed."""
    assert texts(ask(client, n=3, best_of=3, **SAMPLED)) == texts(ask(client, n=3, **SAMPLED))
    assert texts(folded_completion(stream(client, n=3, best_of=3, **SAMPLED))) == texts(ask(client, n=3, **SAMPLED))


def test_echo_puts_the_prompt_in_front(client: TestClient) -> None:
    """The text as it was given, or that of the ids; in a stream it comes once."""
    for prompt in ("one 漢", TOKENIZER.encode("one 漢")):
        expected = ["one 漢" + answer_to("one 漢")]
        assert texts(ask(client, prompt=prompt, echo=True)) == expected
        assert texts(folded_completion(stream(client, prompt=prompt, echo=True))) == expected


def test_echo_with_logprobs_reports_the_prompt_too(client: TestClient, decoder: FakeDecoder) -> None:
    """Null for the first token, of which nothing can be said; offsets point at the tokens in the text."""
    decoder.next_token = says("world", begin="hello ")
    choice = ask(client, prompt="hello ", echo=True, logprobs=2, max_tokens=5)["choices"][0]
    columns, text = choice["logprobs"], choice["text"]
    assert text == "hello world"
    assert columns["tokens"] == list(text)
    assert columns["text_offset"] == list(range(len(text)))
    assert (columns["token_logprobs"][0], columns["top_logprobs"][0]) == (None, None)
    for token, logprob, top in list(zip(*list(columns.values())[:3], strict=True))[1:]:
        assert top[token] == logprob < 0
        assert len(top) in (2, 3)
    of_prompt = ask(client, prompt="hello ", prompt_logprobs=2)["choices"][0]["prompt_logprobs"]
    assert [next(iter(entry.values()))["logprob"] for entry in of_prompt[1:]] == [
        max(top.values()) for top in columns["top_logprobs"][1:6]
    ]


@pytest.mark.parametrize(("num_echoed", "num_told"), [(0, 3), (3, 0), (2, 1)])
def test_echoed_and_prompt_logprobs_have_as_many_alternatives_as_asked(
    client: TestClient, num_echoed: int, num_told: int
) -> None:
    """Both are computed together, and neither shows the other's; the token's own comes on top."""
    fields = {"prompt": "hello", "echo": True, "logprobs": num_echoed, "prompt_logprobs": num_told}
    choice = ask(client, **fields)["choices"][0]
    assert {len(top) - num_echoed for top in choice["logprobs"]["top_logprobs"][1:]} <= {0, 1}
    assert {len(entry) - num_told for entry in choice["prompt_logprobs"][1:]} <= {0, 1}


def test_offsets_count_special_tokens_that_the_echo_shows(client: TestClient, decoder: FakeDecoder) -> None:
    """The prompt is echoed with its special tokens, the answer shows none: offsets follow the text."""
    decoder.next_token = says("you", begin="a<|end|>b")
    choice = ask(client, prompt="a<|end|>b", echo=True, logprobs=0, max_tokens=3)["choices"][0]
    columns, text = choice["logprobs"], choice["text"]
    assert text == "a<|end|>byou"
    starts = [
        text[offset : offset + len(token)]
        for token, offset in zip(columns["tokens"], columns["text_offset"], strict=True)
    ]
    assert starts == columns["tokens"] == ["a", "<|end|>", "b", "y", "o", "u"]


def test_log_probabilities_are_those_of_the_models_logits(client: TestClient) -> None:
    """The fake's chosen token has the logit 1 among zeros, at every temperature."""
    expected = 1 - math.log(math.e + VOCAB_SIZE - 1)
    for fields in ({}, {"temperature": 0.05, "seed": 1}):
        columns = ask(client, logprobs=0, **fields)["choices"][0]["logprobs"]
        assert columns["token_logprobs"] == pytest.approx([expected] * 8, abs=1e-5)


def test_parts_of_characters_stay_apart_in_logprobs(client: TestClient, decoder: FakeDecoder) -> None:
    r"""A token that is no text by itself reads `bytes:\x..`."""
    decoder.next_token = says("né!", begin="hi")
    columns = ask(client, logprobs=0, max_tokens=4)["choices"][0]["logprobs"]
    assert columns["tokens"] == ["n", "bytes:\\xc3", "bytes:\\xa9", "!"]
    assert columns["text_offset"] == [0, 1, 1, 2]


def test_usage_comes_at_the_end_or_with_every_chunk(client: TestClient) -> None:
    """include_usage: null until the last chunk; continuous_usage_stats: counts that grow."""
    *others, last = stream(client, stream_options={"include_usage": True})
    assert {chunk["usage"] for chunk in others} == {None}
    assert (last["choices"], last["usage"]) == ([], ask(client)["usage"])
    counted = stream(client, stream_options={"continuous_usage_stats": True})
    counts = [chunk["usage"]["completion_tokens"] for chunk in counted]
    assert counts == sorted(counts)
    assert (counts[-1], counted[-1]["choices"][0]["finish_reason"]) == (8, "length")


@pytest.mark.parametrize("includes", [False, True])
def test_what_ended_an_answer_is_told(client: TestClient, decoder: FakeDecoder, includes: bool) -> None:
    """The stop string or the request's own stop token; null at the model's end; shown only on demand."""
    decoder.next_token = says("one, two, three", begin="hi")
    shown = {"include_stop_str_in_output": includes, "max_tokens": 20}
    at_string = ask(client, stop=["four", ", th"], **shown)["choices"][0]
    assert (at_string["text"], at_string["stop_reason"]) == ("one, two" + ", th" * includes, ", th")
    comma = TOKENIZER.encode(",")[0]
    at_token = ask(client, stop_token_ids=[comma], **shown)["choices"][0]
    assert (at_token["text"], at_token["stop_reason"]) == ("one" + "," * includes, comma)
    at_end = ask(client, **shown)["choices"][0]
    assert (at_end["text"], at_end["stop_reason"]) == ("one, two, three", None)
    assert {choice["finish_reason"] for choice in (at_string, at_token, at_end)} == {"stop"}


def test_an_answer_does_not_end_before_min_tokens(client: TestClient, decoder: FakeDecoder) -> None:
    """Neither at the model's end token nor at a stop string nor at a stop token."""
    decoder.next_token = says("", begin="hi")  # the end token, again and again
    body = ask(client, min_tokens=5, max_tokens=20)
    assert (body["usage"]["completion_tokens"], body["choices"][0]["finish_reason"]) == (6, "stop")
    decoder.next_token = says("ababab", begin="hi")
    assert texts(ask(client, min_tokens=3, stop="b", max_tokens=20)) == ["aba"]
    assert ask(client, ignore_eos=True, max_tokens=20)["usage"]["completion_tokens"] == 20


def test_special_tokens_are_shown_on_demand(client: TestClient, decoder: FakeDecoder) -> None:
    """An end token that is ignored is text only where special tokens are not skipped."""
    decoder.next_token = says("ab", begin="hi")
    fields = {"ignore_eos": True, "max_tokens": 4}
    assert texts(ask(client, **fields)) == ["ab"]
    assert texts(ask(client, skip_special_tokens=False, **fields)) == ["ab<|end|><|end|>"]


@pytest.mark.parametrize(("given", "num_kept"), [(3, 3), (100, 10), (-1, 10)])
def test_a_prompt_is_cut_at_its_front(client: TestClient, given: int, num_kept: int) -> None:
    """Its last tokens are kept; -1 keeps what fits beside the answer."""
    prompt = "0123456789"
    body = ask(client, prompt=prompt, truncate_prompt_tokens=given)
    assert texts(body) == [answer_to(prompt[-num_kept:])]
    assert body["usage"]["prompt_tokens"] == num_kept


def test_a_prompt_that_is_cut_to_what_fits_leaves_room_for_the_answer(client: TestClient) -> None:
    """Context minus max_tokens; without truncation the same prompt is refused."""
    prompt = "".join(chr(ord("a") + number % 26) for number in range(600))
    body = ask(client, prompt=prompt, truncate_prompt_tokens=-1, max_tokens=20)
    assert body["usage"]["total_tokens"] == 512
    assert texts(body) == [answer_to(prompt[-492:], 20)]
    assert client.post(COMPLETIONS, json=body_for(COMPLETIONS, prompt)).status_code == 400


def test_answers_say_how_long_they_took(client: TestClient) -> None:
    """Server-Timing, for browsers' and humans' eyes."""
    response = client.post(COMPLETIONS, json=body_for(COMPLETIONS))
    assert [part.split(";")[0] for part in response.headers["server-timing"].split(", ")] == [
        "queue",
        "prefill",
        "decode",
    ]


def test_banned_and_allowed_tokens_bind_every_token(client: TestClient) -> None:
    """At temperature 1, where the fake would choose anything."""
    allowed = [*TOKENIZER.encode("abc"), END_ID]
    text = texts(ask(client, allowed_token_ids=allowed, max_tokens=40, **SAMPLED))[0]
    assert set(text) <= set("abc")
    text = texts(ask(client, allowed_token_ids=allowed, bad_words=["b"], ignore_eos=True, max_tokens=40, **SAMPLED))[0]
    assert set(text) == set("ac")
