"""inspect-ai through its `openai/` provider: the model itself, an evaluation, and its agents, on both routes."""

import os
import tempfile
from typing import Any, Literal

from inspect_ai import Task, eval_async
from inspect_ai.agent import react
from inspect_ai.dataset import Sample
from inspect_ai.model import (
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    ResponseSchema,
    execute_tools,
    get_model,
)
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import Tool, ToolFunction, tool
from inspect_ai.util import json_schema
from pydantic import BaseModel

from tests.clients.capabilities import MAX_TOKENS, MODEL_ID, QUESTION, WEATHER, Checks, check_arguments

os.environ["INSPECT_LOG_DIR"] = tempfile.mkdtemp()
checks = Checks()
CONFIG = GenerateConfig(max_tokens=MAX_TOKENS, temperature=0, max_retries=0, timeout=60)


class Report(BaseModel):
    """The weather somewhere."""

    city: Literal["Paris", "Berlin"]
    unit: Literal["C", "F"]


@tool
def get_weather() -> Tool:
    """The weather."""

    async def execute(city: Literal["Paris", "Berlin"], unit: Literal["C", "F"]) -> str:
        """Tell the weather.

        Args:
            city: Where.
            unit: Celsius or Fahrenheit.
        """
        check_arguments({"city": city, "unit": unit})
        return WEATHER

    return execute


def add_checks(row: str, **model_args: Any) -> None:
    """The provider on one route."""
    model = get_model(f"openai/{MODEL_ID}", config=CONFIG, memoize=False, **model_args)
    messages: Any = [ChatMessageSystem(content="Be brief."), ChatMessageUser(content=QUESTION)]

    @checks.add(row, "plain")
    async def plain() -> None:
        answer = await model.generate(messages)
        assert answer.completion
        assert answer.usage

    @checks.add(row, "plain")
    async def evaluated() -> None:
        task = Task([Sample(QUESTION, target="Paris")], solver=[generate()], scorer=includes())
        [log] = await eval_async(task, model=model)
        assert log.status == "success", log.error

    @checks.add(row, "streamed")
    async def streamed() -> None:
        streaming = get_model(f"openai/{MODEL_ID}", config=CONFIG, memoize=False, streaming=True, **model_args)
        assert (await streaming.generate(messages)).completion

    @checks.add(row, "tools")
    async def tools() -> None:
        answer = await model.generate(messages, tools=[get_weather()], tool_choice=ToolFunction("get_weather"))
        assert answer.message.tool_calls
        check_arguments(answer.message.tool_calls[0].arguments)

    @checks.add(row, "second turn")
    async def second_turn() -> None:
        answer = await model.generate(messages, tools=[get_weather()], tool_choice=ToolFunction("get_weather"))
        results = await execute_tools([*messages, answer.message], [get_weather()])
        assert results.messages[0].text == WEATHER
        history = [*messages, answer.message, *results.messages]
        last = await model.generate(history, tools=[get_weather()], tool_choice="none")
        again = [*history, last.message, ChatMessageUser(content="And in Berlin?")]
        assert (await model.generate(again, tools=[get_weather()], tool_choice="none")).completion is not None

    @checks.add(row, "second turn")
    async def reacting() -> None:
        task = Task(
            [Sample(QUESTION, target="Paris")],
            solver=react(tools=[get_weather()]),
            message_limit=8,
        )
        [log] = await eval_async(task, model=model)
        assert log.status == "success", log.error

    @checks.add(row, "tools")
    async def solver_with_tools() -> None:
        solver = [use_tools([get_weather()], tool_choice=ToolFunction("get_weather")), generate(tool_calls="single")]
        [log] = await eval_async(Task([Sample(QUESTION)], solver=solver), model=model)
        assert log.status == "success", log.error
        assert log.samples
        assert "tool" in [message.role for message in log.samples[0].messages]

    @checks.add(row, "structured")
    async def structured() -> None:
        schema = ResponseSchema(name="report", json_schema=json_schema(Report))
        answer = await model.generate(messages, config=GenerateConfig(response_schema=schema))
        Report.model_validate_json(answer.completion)


add_checks("inspect-ai chat")
add_checks("inspect-ai responses", responses_api=True)

if __name__ == "__main__":
    checks.run()
