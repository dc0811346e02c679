"""The official Python client, version 2 or current: chat completions and responses, its helpers and its history."""

from typing import Any, Literal

import openai
import pydantic

from tests.clients.capabilities import MAX_TOKENS, MODEL_ID, QUESTION, WEATHER, Checks, check_arguments


class GetWeather(pydantic.BaseModel):
    """Tell the weather."""

    city: Literal["Paris", "Berlin"]
    unit: Literal["C", "F"]


client = openai.OpenAI(max_retries=0, timeout=60)
checks = Checks()
CHAT = f"openai {openai.__version__} chat"
RESPONSES = f"openai {openai.__version__} responses"
TOOL = openai.pydantic_function_tool(GetWeather)
RESPONSE_TOOL: Any = {"type": "function", **TOOL["function"]}
CALL_IT: Any = {"type": "function", "function": {"name": "GetWeather"}}
USER: Any = {"role": "user", "content": QUESTION}


@checks.add(CHAT, "plain")
def plain() -> None:
    """An answer in one piece, read as its typed object."""
    answer = client.chat.completions.create(model=MODEL_ID, messages=[USER], max_completion_tokens=MAX_TOKENS)
    assert answer.choices[0].message.content
    assert answer.usage
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@checks.add(CHAT, "streamed")
def streamed() -> None:
    """The helper that collects chunks comes to a whole answer."""
    with client.chat.completions.stream(
        model=MODEL_ID, messages=[USER], temperature=0, stream_options={"include_usage": True}
    ) as stream:
        for _ in stream:
            pass
        answer = stream.get_final_completion()
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage


def ask_for_a_call(messages: list[Any]) -> Any:
    """A forced call, parsed by the client."""
    return client.chat.completions.parse(
        model=MODEL_ID, messages=messages, tools=[TOOL], tool_choice=CALL_IT, parallel_tool_calls=False
    )


@checks.add(CHAT, "tools")
def tools() -> None:
    """One call, whose arguments the client parses into the tool's class."""
    [call] = ask_for_a_call([USER]).choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, GetWeather)
    check_arguments(call.function.arguments)


@checks.add(CHAT, "second turn")
def second_turn() -> None:
    """The client's own message goes back as the object, as a dump and as a dump without nulls."""
    message = ask_for_a_call([USER]).choices[0].message
    result: Any = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": WEATHER}
    for history in (message, message.model_dump(), message.model_dump(exclude_none=True)):
        answer = client.chat.completions.create(
            model=MODEL_ID, messages=[USER, history, result], tools=[TOOL], tool_choice="none", max_tokens=MAX_TOKENS
        )
        assert answer.choices[0].message.content


@checks.add(CHAT, "streamed tools")
def streamed_tools() -> None:
    """A streamed call is collected and parsed, and goes back as history."""
    with client.chat.completions.stream(
        model=MODEL_ID, messages=[USER], tools=[TOOL], tool_choice=CALL_IT, parallel_tool_calls=False
    ) as stream:
        events = [event.type for event in stream]
        message = stream.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.done" in events
    assert message.tool_calls
    check_arguments(message.tool_calls[0].function.arguments)
    result: Any = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": WEATHER}
    messages: Any = [USER, message.model_dump(), result]
    answer = client.chat.completions.create(model=MODEL_ID, messages=messages, tools=[TOOL], max_tokens=MAX_TOKENS)
    assert answer.choices[0].finish_reason


@checks.add(CHAT, "structured")
def structured() -> None:
    """A class as the response format comes back as its instance."""
    answer = client.chat.completions.parse(model=MODEL_ID, messages=[USER], response_format=GetWeather)
    assert isinstance(answer.choices[0].message.parsed, GetWeather)


@checks.add(RESPONSES, "plain")
def plain_response() -> None:
    """A text and instructions."""
    answer = client.responses.create(
        model=MODEL_ID, instructions="Answer briefly.", input=QUESTION, max_output_tokens=MAX_TOKENS
    )
    assert answer.output_text


@checks.add(RESPONSES, "streamed")
def streamed_response() -> None:
    """The helper that collects events comes to a whole answer."""
    with client.responses.stream(model=MODEL_ID, input=QUESTION, temperature=0) as stream:
        last = [event.type for event in stream][-1]
        assert stream.get_final_response().output_text
    assert last in ("response.completed", "response.incomplete")


def ask_for_a_function_call(items: list[Any]) -> Any:
    """A forced call, parsed by the client."""
    return client.responses.parse(
        model=MODEL_ID, input=items, tools=[RESPONSE_TOOL], tool_choice={"type": "function", "name": "GetWeather"}
    )


@checks.add(RESPONSES, "tools")
def response_tools() -> None:
    """One call, whose arguments fit."""
    calls = [item for item in ask_for_a_function_call([USER]).output if item.type == "function_call"]
    assert calls
    check_arguments(calls[0].arguments)


@checks.add(RESPONSES, "second turn")
def second_response() -> None:
    """The client's own items go back as objects, as dumps and as dumps without nulls."""
    output = ask_for_a_function_call([USER]).output
    results: Any = [
        {"type": "function_call_output", "call_id": item.call_id, "output": WEATHER}
        for item in output
        if item.type == "function_call"
    ]
    dumps = ([*output], [i.model_dump() for i in output], [i.model_dump(exclude_none=True) for i in output])
    for history in dumps:
        answer = client.responses.create(
            model=MODEL_ID,
            input=[USER, *history, *results],
            tools=[RESPONSE_TOOL],
            tool_choice="none",
            max_output_tokens=MAX_TOKENS,
        )
        again: Any = [USER, *history, *results, *answer.output, USER]
        assert client.responses.create(model=MODEL_ID, input=again, max_output_tokens=MAX_TOKENS).output_text


@checks.add(RESPONSES, "streamed tools")
def streamed_response_tools() -> None:
    """A streamed call arrives whole."""
    with client.responses.stream(
        model=MODEL_ID, input=[USER], tools=[RESPONSE_TOOL], tool_choice={"type": "function", "name": "GetWeather"}
    ) as stream:
        events = [event.type for event in stream]
        [call, *_] = stream.get_final_response().output
    assert "response.function_call_arguments.done" in events
    assert call.type == "function_call"
    check_arguments(call.arguments)


@checks.add(RESPONSES, "structured")
def structured_response() -> None:
    """A class as the text format comes back as its instance."""
    answer = client.responses.parse(model=MODEL_ID, input=QUESTION, text_format=GetWeather)
    assert isinstance(answer.output_parsed, GetWeather)


if __name__ == "__main__":
    checks.run()
