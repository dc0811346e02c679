"""litellm with its `openai/` and `hosted_vllm/` prefixes, and its bridge to the responses route."""

import json
from typing import Any, Literal

import litellm
from pydantic import BaseModel

from tests.clients.capabilities import (
    MAX_TOKENS,
    MODEL_ID,
    QUESTION,
    WEATHER,
    Checks,
    api_key,
    base_url,
    check_arguments,
)

checks = Checks()
litellm.telemetry = False
PLACE: dict[str, Any] = {"api_base": base_url(), "api_key": api_key(), "timeout": 60, "num_retries": 0}
USER: Any = {"role": "user", "content": QUESTION}


class Report(BaseModel):
    """The weather somewhere."""

    city: Literal["Paris", "Berlin"]
    unit: Literal["C", "F"]


FUNCTION: Any = {"name": "get_weather", "description": "Tell the weather.", "parameters": Report.model_json_schema()}
TOOLS: Any = [{"type": "function", "function": FUNCTION}]
CALL_IT: Any = {"type": "function", "function": {"name": "get_weather"}}


def add_checks(prefix: str) -> None:
    """One of litellm's providers for such a server."""
    row = f"litellm {prefix}/"

    def ask(messages: list[Any], **fields: Any) -> Any:
        defaults = {"max_tokens": MAX_TOKENS, "temperature": 0}
        return litellm.completion(model=f"{prefix}/{MODEL_ID}", messages=messages, **PLACE | defaults | fields)

    @checks.add(row, "plain")
    def plain() -> None:
        assert ask([USER]).choices[0].message.content

    @checks.add(row, "streamed")
    def streamed() -> None:
        chunks = list(ask([USER], stream=True, stream_options={"include_usage": True}))
        whole: Any = litellm.stream_chunk_builder(chunks)
        assert whole.choices[0].message.content
        assert whole.usage.completion_tokens

    @checks.add(row, "tools")
    def tools() -> None:
        message = ask([USER], tools=TOOLS, tool_choice=CALL_IT).choices[0].message
        check_arguments(message.tool_calls[0].function.arguments)

    def go_on_from(message: Any) -> None:
        result = {
            "role": "tool",
            "tool_call_id": message.tool_calls[0].id,
            "name": message.tool_calls[0].function.name,
            "content": WEATHER,
        }
        for history in (message, message.model_dump(), json.loads(message.model_dump_json())):
            answer = ask([USER, history, result], tools=TOOLS, tool_choice="none")
            assert answer.choices[0].message.content is not None

    @checks.add(row, "second turn")
    def second_turn() -> None:
        go_on_from(ask([USER], tools=TOOLS, tool_choice=CALL_IT, parallel_tool_calls=False).choices[0].message)

    @checks.add(row, "streamed tools")
    def streamed_tools() -> None:
        chunks = list(ask([USER], tools=TOOLS, tool_choice="required", parallel_tool_calls=False, stream=True))
        message = litellm.stream_chunk_builder(chunks).choices[0].message  # type: ignore[union-attr]
        check_arguments(message.tool_calls[0].function.arguments)
        go_on_from(message)

    @checks.add(row, "structured")
    def structured() -> None:
        Report.model_validate_json(ask([USER], response_format=Report).choices[0].message.content)


add_checks("openai")
add_checks("hosted_vllm")


@checks.add("litellm responses", "plain")
def plain_response() -> None:
    """The responses route."""
    answer: Any = litellm.responses(
        model=f"openai/{MODEL_ID}", input=QUESTION, max_output_tokens=MAX_TOKENS, temperature=0, **PLACE
    )
    assert answer.output_text


if __name__ == "__main__":
    checks.run()
