"""Simon Willison's llm, with the server named in its extra-openai-models.yaml as its documentation says."""

import os
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import llm

from tests.clients.capabilities import (
    MAX_TOKENS,
    MODEL_ID,
    QUESTION,
    WEATHER,
    Checks,
    api_key,
    base_url,
    check_arguments,
    spelled_call,
)

FOLDER = Path(tempfile.mkdtemp())
os.environ["LLM_USER_PATH"] = str(FOLDER)
(FOLDER / "extra-openai-models.yaml").write_text(
    f"""\
- model_id: attend
  model_name: {MODEL_ID}
  api_base: {base_url()}
  api_key_name: attend
  supports_tools: true
  supports_schema: true
- model_id: attend-responses
  model_name: {MODEL_ID}
  api_base: {base_url()}
  api_key_name: attend
  supports_tools: true
  supports_schema: true
  responses: true
""",
    encoding="utf-8",
)

checks = Checks()
CALL_IT = f"Repeat this: {spelled_call('get_weather')}"  # llm has no tool_choice


def get_weather(city: str, unit: str) -> str:
    """Tell the weather."""
    return WEATHER


TOOL = llm.Tool.function(get_weather)
TOOL.input_schema = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Berlin"]}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}


def add_checks(row: str, model_id: str) -> None:
    """One of llm's two classes."""
    model: Any = llm.get_model(model_id)
    options: dict[str, Any] = {"key": api_key(), "temperature": 0}

    @checks.add(row, "plain")
    def plain() -> None:
        assert model.prompt(QUESTION, system="Be brief.", stream=False, max_tokens=MAX_TOKENS, **options).text()

    @checks.add(row, "streamed")
    def streamed() -> None:
        response = model.prompt(QUESTION, stream=True, max_tokens=MAX_TOKENS, **options)
        assert len(list(response)) > 1
        assert response.usage().output

    @checks.add(row, "tools")
    def tools() -> None:
        response = model.prompt(CALL_IT, tools=[TOOL], stream=False, max_tokens=MAX_TOKENS, **options)
        [call, *_] = response.tool_calls()
        check_arguments(call.arguments)

    @checks.add(row, "second turn")
    def second_turn() -> None:
        conversation = model.conversation()
        first = conversation.prompt(QUESTION, max_tokens=MAX_TOKENS, **options)
        assert first.text()
        assert conversation.prompt("And of Germany?", max_tokens=MAX_TOKENS, **options).text()

    @checks.add(row, "second turn")
    def chain() -> None:
        chain = model.conversation(tools=[TOOL]).chain(
            CALL_IT, options={"temperature": 0, "max_tokens": MAX_TOKENS}, key=api_key(), chain_limit=3
        )
        responses = list(islice(chain.responses(), 2))
        assert len(responses) == 2
        assert responses[1].prompt.tool_results

    @checks.add(row, "structured")
    def structured() -> None:
        check = model.prompt(QUESTION, schema=TOOL.input_schema, stream=False, **options)
        check_arguments(check.text())


add_checks("llm chat", "attend")
add_checks("llm responses", "attend-responses")

if __name__ == "__main__":
    checks.run()
