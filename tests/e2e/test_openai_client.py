"""The official Python client in full: every call that Attend answers, streamed and not, with vLLM's fields in them."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest

from model.bundle import Bundle
from tests.support.server import Server, running_server

MODEL_ID = "smollm2-135m-instruct"
QUESTION: Any = [{"role": "user", "content": "Name the capital of France."}]
ANSWER = "The capital of France is Paris."
ANSWER_IDS = [504, 3575, 282, 4649, 314, 7042, 30]

pytestmark = pytest.mark.model


class City(pydantic.BaseModel):
    """A form whose every field is bounded."""

    name: str = pydantic.Field(max_length=20)
    kind: Literal["town", "city"]
    rank: int = pydantic.Field(ge=0, le=99)


class Weather(pydantic.BaseModel):
    """Tell the weather."""

    city: str = pydantic.Field(max_length=20)
    unit: Literal["C", "F"]


class Clock(pydantic.BaseModel):
    """Tell the time."""

    zone: Literal["UTC", "CET"]


TOOLS: Any = [openai.pydantic_function_tool(Weather), openai.pydantic_function_tool(Clock)]
RESPONSE_TOOLS: Any = [{"type": "function", **tool["function"]} for tool in TOOLS]


@pytest.fixture(scope="module")
def server(default_bundle: Bundle) -> Iterator[Server]:
    """One server for all tests; they leave it as they found it."""
    with running_server("--standalone", "--bundle", default_bundle.path) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    """The official client, with only its base URL changed."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    """An answer to the question, or to other messages."""
    return client.chat.completions.create(**{"model": MODEL_ID, "messages": QUESTION, **fields})


def complete(client: openai.OpenAI, prompt: Any, **fields: Any) -> Any:
    """A continuation, greedy if nothing else is asked for."""
    return client.completions.create(model=MODEL_ID, prompt=prompt, **{"temperature": 0, **fields})


def contents(answer: Any) -> list[str]:
    """The text of each choice."""
    return [choice.message.content for choice in answer.choices]


def streamed_contents(chunks: Any, num_choices: int = 1) -> list[str]:
    """The text of each choice, from a stream."""
    texts = [""] * num_choices
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    return texts


def test_content_parts_and_the_developer_role_are_the_same_conversation(client: openai.OpenAI) -> None:
    """Parts are joined; `developer` is `system` by its newer name."""
    parts = [{"type": "text", "text": "Name the capital "}, {"type": "text", "text": "of France."}]
    system = {"role": "system", "content": "Answer briefly."}
    developer = {"role": "developer", "content": [{"type": "text", "text": "Answer briefly."}]}
    plain = chat(client, messages=[system, *QUESTION], temperature=0, max_tokens=20)
    spelled = chat(client, messages=[developer, {"role": "user", "content": parts}], temperature=0, max_tokens=20)
    assert contents(plain) == contents(spelled)
    assert "Paris" in contents(plain)[0]


def test_three_seeded_answers_differ_and_the_first_is_the_only_one_of_one(client: openai.OpenAI) -> None:
    """Streamed and not; asked again, they are the same."""
    fields = {"seed": 5, "max_tokens": 12, "temperature": 1.0}
    three = contents(chat(client, n=3, **fields))
    assert len(set(three)) == 3
    assert contents(chat(client, **fields)) == three[:1]
    assert streamed_contents(chat(client, n=3, stream=True, **fields), 3) == three


def test_several_prompts_are_completed_each_as_if_alone(client: openai.OpenAI) -> None:
    """In order, and streamed the same."""
    prompts = ["One, two, three,", "The capital of France is"]
    alone = [complete(client, prompt, max_tokens=4).choices[0].text for prompt in prompts]
    together = complete(client, prompts, max_tokens=4)
    assert [choice.text for choice in together.choices] == alone
    assert together.usage.completion_tokens == 8
    texts = ["", ""]
    for chunk in complete(client, prompts, max_tokens=4, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == alone


def test_a_prompt_is_scored_as_evaluation_harnesses_do(client: openai.OpenAI) -> None:
    """Lists of token ids, echo, one token: the prompt's own log-probabilities, the likeliest token beside each."""
    prompts = [ANSWER_IDS, ANSWER_IDS[:4]]
    answer = complete(client, prompts, max_tokens=1, logprobs=1, echo=True)
    for prompt, choice in zip(prompts, answer.choices, strict=True):
        scores = choice.logprobs
        assert "".join(scores.tokens) == choice.text
        assert choice.text.startswith(ANSWER[: len(choice.text) - len(scores.tokens[-1])])
        assert len(scores.tokens) == len(prompt) + 1
        assert scores.token_logprobs[0] is scores.top_logprobs[0] is None
        assert scores.text_offset == [len("".join(scores.tokens[:at])) for at in range(len(scores.tokens))]
        for token, logprob, top in zip(
            scores.tokens[1:], scores.token_logprobs[1:], scores.top_logprobs[1:], strict=True
        ):
            assert top[token] == logprob <= max(top.values()) <= 0
            assert len(top) == (1 if logprob == max(top.values()) else 2)
        assert max(scores.top_logprobs[-1], key=scores.top_logprobs[-1].get) == scores.tokens[-1]  # it was greedy
    shorter, longer = answer.choices[1].logprobs.token_logprobs, answer.choices[0].logprobs.token_logprobs
    assert shorter[1:4] == pytest.approx(longer[1:4], abs=1e-4)


def test_a_chats_logprobs_are_those_of_its_tokens(client: openai.OpenAI) -> None:
    """The greedy token is the likeliest; bytes spell the text; streamed the same."""
    fields = {"temperature": 0, "logprobs": True, "top_logprobs": 3}
    answer = chat(client, **fields)
    entries = answer.choices[0].logprobs.content
    text = b"".join(bytes(entry.bytes) for entry in entries).decode()
    assert text.removesuffix("<|im_end|>") == contents(answer)[0] == ANSWER
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert (entry.top_logprobs[0].token, entry.top_logprobs[0].logprob) == (entry.token, entry.logprob)
        assert [top.logprob for top in entry.top_logprobs] == sorted(
            (t.logprob for t in entry.top_logprobs), reverse=True
        )
    chunks = [chunk.choices[0] for chunk in chat(client, stream=True, **fields)]
    streamed = [entry for choice in chunks if choice.logprobs for entry in choice.logprobs.content]
    assert [entry.token for entry in streamed] == [entry.token for entry in entries]


def test_an_answer_ends_before_a_stop_string(client: openai.OpenAI) -> None:
    """Whichever of several comes first, streamed and not."""
    answer = complete(client, "One, two, three,", max_tokens=20, stop=["seven", " six"])
    assert answer.choices[0].text == " four, five,"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].stop_reason == " six"
    chunks = complete(client, "One, two, three,", max_tokens=20, stop=["seven", " six"], stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == " four, five,"


def test_a_seed_repeats_an_answer_and_another_does_not(client: openai.OpenAI) -> None:
    """On both routes."""
    first, again, other = (
        complete(client, "Once", temperature=1, max_tokens=16, seed=seed).choices[0].text for seed in (7, 7, 8)
    )
    assert first == again != other
    first, again, other = (contents(chat(client, temperature=1.5, max_tokens=16, seed=seed)) for seed in (7, 7, 8))
    assert first == again != other


def test_a_chat_is_parsed_into_a_model(client: openai.OpenAI) -> None:
    """The client's own helper, streamed and not."""
    fields: Any = {"model": MODEL_ID, "messages": QUESTION, "response_format": City, "seed": 1}
    parsed = client.chat.completions.parse(**fields).choices[0].message.parsed
    assert isinstance(parsed, City)
    with client.chat.completions.stream(**fields) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == parsed


def test_a_required_tool_is_called_with_arguments_that_parse(client: openai.OpenAI) -> None:
    """Any of them, or the one that is named; calls are parsed by the client."""
    fields: Any = {"model": MODEL_ID, "messages": QUESTION, "tools": TOOLS, "seed": 1, "parallel_tool_calls": False}
    choice = client.chat.completions.parse(tool_choice="required", **fields).choices[0]
    [call] = choice.message.tool_calls or []
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert isinstance(call.function.parsed_arguments, Weather | Clock)
    named: Any = {"type": "function", "function": {"name": "Clock"}}
    [call] = client.chat.completions.parse(tool_choice=named, **fields).choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Clock)


def test_a_tool_that_may_be_called_need_not_be(client: openai.OpenAI) -> None:
    """With auto this model prefers to answer; a result that is sent back is read."""
    choice = chat(client, tools=TOOLS, tool_choice="auto", temperature=0).choices[0]
    assert choice.finish_reason == "stop"
    assert choice.message.content == ANSWER
    assert choice.message.tool_calls is None
    call = {"id": "call_1", "type": "function", "function": {"name": "Clock", "arguments": '{"zone": "UTC"}'}}
    result = {"role": "tool", "tool_call_id": "call_1", "content": "12:30"}
    messages = [*QUESTION, {"role": "assistant", "content": None, "tool_calls": [call]}, result]
    assert contents(chat(client, messages=messages, tools=TOOLS, max_tokens=8))[0] is not None


def test_tool_calls_are_streamed_in_deltas(client: openai.OpenAI) -> None:
    """Put together by the client they are the call that is not streamed."""
    fields: Any = {"tools": TOOLS, "tool_choice": "required", "seed": 1, "parallel_tool_calls": False}
    [whole] = chat(client, **fields).choices[0].message.tool_calls
    deltas, done = [], []
    with client.chat.completions.stream(model=MODEL_ID, messages=QUESTION, **fields) as stream:
        for event in stream:
            if event.type == "tool_calls.function.arguments.delta":
                deltas.append(event.arguments_delta)
            elif event.type == "tool_calls.function.arguments.done":
                done.append((event.index, event.name, event.arguments))
        choice = stream.get_final_completion().choices[0]
    [call] = choice.message.tool_calls or []
    assert len(deltas) > 2
    assert "".join(deltas) == call.function.arguments == whole.function.arguments
    assert done == [(0, whole.function.name, whole.function.arguments)]
    assert choice.finish_reason == "tool_calls"
    assert not choice.message.content


def respond(client: openai.OpenAI, **fields: Any) -> Any:
    """An answer of the Responses API."""
    return client.responses.create(model=MODEL_ID, **{"input": "Name the capital of France.", **fields})


def test_a_response_is_the_chats_answer(client: openai.OpenAI) -> None:
    """Text, items, usage; cut where it is told to."""
    response = respond(client, temperature=0)
    assert response.output_text == ANSWER
    assert response.status == "completed"
    assert (response.usage.input_tokens, response.usage.output_tokens) == (36, 8)
    cut = respond(client, temperature=0, max_output_tokens=3)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    items = [{"role": "user", "content": "Hello"}, *response.output, {"role": "user", "content": "And of Spain?"}]
    assert respond(client, input=items, max_output_tokens=3).status == "incomplete"


def test_a_response_is_streamed_in_numbered_events(client: openai.OpenAI) -> None:
    """From created to completed; the deltas are the text."""
    events = list(respond(client, temperature=0, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == ANSWER
    assert events[-1].response.output_text == ANSWER


def test_a_response_is_parsed_into_a_model(client: openai.OpenAI) -> None:
    """The client's own helper, streamed and not."""
    fields: Any = {"model": MODEL_ID, "input": "A city", "text_format": City, "extra_body": {"seed": 1}}
    parsed = client.responses.parse(**fields).output_parsed
    assert isinstance(parsed, City)
    with client.responses.stream(**fields) as stream:
        assert stream.get_final_response().output_parsed == parsed


def test_a_response_calls_tools(client: openai.OpenAI) -> None:
    """Required and named, streamed and not; the result goes back as an item."""
    fields = {"tools": RESPONSE_TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    fields |= {"extra_body": {"seed": 1}}
    [call] = respond(client, **fields).output
    assert call.type == "function_call"
    model: type[pydantic.BaseModel] = Clock if call.name == "Clock" else Weather
    assert model.model_validate_json(call.arguments)
    events = list(respond(client, stream=True, **fields))
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert len(deltas) > 2
    assert "".join(deltas) == call.arguments == events[-1].response.output[0].arguments
    [named] = respond(client, **{**fields, "tool_choice": {"type": "function", "name": "Clock"}}).output
    Clock.model_validate_json(named.arguments)
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    items = [{"role": "user", "content": "Hello"}, call, output]
    assert respond(client, input=items, tools=RESPONSE_TOOLS, max_output_tokens=3).output


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"temperature": 9}, "temperature", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing_field"),
        ({"extra_body": {"guided_regex": "("}}, "guided_regex", "invalid_constraint"),
        ({"extra_body": {"colour": 1}}, "colour", "unknown_field"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"stream": True, "top_p": 0}, "top_p", "invalid_value"),
    ],
)
def test_a_bad_request_is_the_clients_error_with_its_field(
    client: openai.OpenAI, fields: dict[str, Any], param: str, code: str
) -> None:
    """BadRequestError, also where a stream was asked for."""
    with pytest.raises(openai.BadRequestError) as refusal:
        chat(client, **fields)
    assert (refusal.value.param, refusal.value.code) == (param, code)
    assert refusal.value.type == "invalid_request_error"


def test_what_is_not_there_is_not_found(client: openai.OpenAI) -> None:
    """Another model, wherever it is named; embeddings."""
    with pytest.raises(openai.NotFoundError) as refusal:
        chat(client, model="other")
    assert (refusal.value.param, refusal.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=MODEL_ID, input="x")
    assert client.models.retrieve(MODEL_ID).id == MODEL_ID


ENDLESS = {"ignore_eos": True, "deadline_ms": 3000}


def test_what_fails_in_the_middle_of_a_stream_is_an_error_and_no_end(client: openai.OpenAI) -> None:
    """A deadline that passes while tokens come."""
    stream = complete(client, "Once upon a time", max_tokens=8000, stream=True, extra_body=ENDLESS)
    assert next(stream).choices
    with pytest.raises(openai.APIError, match="deadline") as failure:
        list(stream)
    assert failure.value.code == "deadline"


def test_what_fails_in_the_middle_of_a_response_is_its_last_event(client: openai.OpenAI) -> None:
    """The Responses API has an event for it, which this client hands over like the others."""
    events = list(respond(client, max_output_tokens=8000, stream=True, extra_body=ENDLESS))
    assert "response.output_text.delta" in {event.type for event in events}
    assert (events[-1].type, events[-1].code) == ("error", "deadline")
    assert "deadline" in events[-1].message
    assert events[-1].sequence_number == len(events) - 1


def test_a_deadline_that_passes_before_the_whole_answer_is_a_timeout(client: openai.OpenAI) -> None:
    """Not streamed: 408, with the code to tell it from other timeouts."""
    with pytest.raises(openai.APIStatusError) as failure:
        complete(client, "Once upon a time", max_tokens=8000, extra_body={**ENDLESS, "deadline_ms": 200})
    assert (failure.value.status_code, failure.value.code) == (408, "deadline")


def test_sampling_fields_of_vllm_narrow_the_choice(client: openai.OpenAI) -> None:
    """Each of them, at its narrowest, makes a hot answer the greedy one."""
    for narrowest in ({"top_k": 1}, {"min_p": 1.0}):
        assert contents(chat(client, temperature=2, max_tokens=20, extra_body=narrowest)) == [ANSWER]


def test_guides_of_vllm_give_the_answer_its_form(client: openai.OpenAI) -> None:
    """Choice, regex and JSON."""
    assert contents(chat(client, extra_body={"guided_choice": ["red", "green"]}))[0] in ("red", "green")
    [text] = contents(chat(client, extra_body={"guided_regex": "[0-9]{3}-[a-z]{2}"}))
    digits, letters = text.split("-")
    assert digits.isdigit()
    assert letters.islower()
    schema = {**City.model_json_schema(), "additionalProperties": False}
    [text] = contents(chat(client, extra_body={"guided_json": schema}))
    City.model_validate_json(text)
    assert json.loads(text).keys() == {"name", "kind", "rank"}


def test_fields_of_vllm_say_when_an_answer_ends(client: openai.OpenAI) -> None:
    """At a token, after the model's own end, not before so many."""
    ends = {"stop_token_ids": [ANSWER_IDS[5]]}
    choice = chat(client, temperature=0, max_tokens=20, extra_body=ends).choices[0]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", ANSWER_IDS[5])
    assert choice.message.content == "The capital of France is"
    for longer in ({"ignore_eos": True}, {"min_tokens": 12}):
        answer = chat(client, temperature=0, max_tokens=12, extra_body=longer)
        assert answer.usage.completion_tokens == 12
        assert answer.choices[0].finish_reason == "length"


def test_bad_words_of_vllm_are_never_written(client: openai.OpenAI) -> None:
    """Not the word that the greedy answer has."""
    [text] = contents(chat(client, temperature=0, max_tokens=20, extra_body={"bad_words": ["Paris"]}))
    assert text.startswith("The capital of France is ")
    assert "Paris" not in text


def test_prompt_logprobs_of_vllm_come_beside_the_answer(client: openai.OpenAI) -> None:
    """By token id, null for the first; they are those that echo gives."""
    choice = complete(client, ANSWER_IDS, max_tokens=1, extra_body={"prompt_logprobs": 1}).choices[0]
    first, *others = choice.model_extra["prompt_logprobs"]
    assert first is None
    echoed = complete(client, ANSWER_IDS, max_tokens=1, logprobs=0, echo=True).choices[0].logprobs
    for token_id, entry, logprob, token in zip(
        ANSWER_IDS[1:], others, echoed.token_logprobs[1:-1], echoed.tokens[1:-1], strict=True
    ):
        assert entry[str(token_id)]["logprob"] == pytest.approx(logprob, abs=1e-4)
        assert entry[str(token_id)]["decoded_token"] == token
        assert any(alternative["rank"] == 1 for alternative in entry.values())
