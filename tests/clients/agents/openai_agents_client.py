"""The OpenAI agents SDK with its chat completions model and its responses model."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from agents import (
    Agent,
    AsyncOpenAI,
    Model,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunContextWrapper,
    Runner,
    function_tool,
    handoff,
    set_tracing_disabled,
)
from pydantic import BaseModel

from tests.clients.capabilities import MAX_TOKENS, MODEL_ID, QUESTION, WEATHER, Checks, check_arguments

checks = Checks()
set_tracing_disabled(True)
client = AsyncOpenAI(max_retries=0, timeout=60)
BRIEF = ModelSettings(max_tokens=MAX_TOKENS, temperature=0)
CALLING = ModelSettings(max_tokens=MAX_TOKENS, temperature=0, tool_choice="required", parallel_tool_calls=False)


class Report(BaseModel):
    """The weather somewhere."""

    city: Literal["Paris", "Berlin"]
    unit: Literal["C", "F"]


@function_tool
def get_weather(city: Literal["Paris", "Berlin"], unit: Literal["C", "F"]) -> str:
    """Tell the weather."""
    check_arguments({"city": city, "unit": unit})
    return WEATHER


@dataclass
class Calls:
    """A run's context: how often the tool was called."""

    num_calls: int = 0


@function_tool(is_enabled=lambda context, _agent: context.context.num_calls == 0)
def get_weather_once(
    context: RunContextWrapper[Calls], city: Literal["Paris", "Berlin"], unit: Literal["C", "F"]
) -> str:
    """Tell the weather; offered once, for with a form a model this small would call until the last turn."""
    check_arguments({"city": city, "unit": unit})
    context.context.num_calls += 1
    return WEATHER


def kinds(items: list[Any]) -> list[str]:
    """The types of the items that a run made."""
    return [item.type for item in items]


def add_checks(row: str, model: Model) -> None:
    """An agent with each feature, on one of the two models."""

    def agent(**fields: Any) -> Agent[Any]:
        settings = {"name": "helper", "instructions": "Be brief.", "model": model, "model_settings": BRIEF}
        return Agent(**settings | fields)

    @checks.add(row, "plain")
    async def plain() -> None:
        result = await Runner.run(agent(), QUESTION)
        assert result.final_output

    @checks.add(row, "streamed")
    async def streamed() -> None:
        result = Runner.run_streamed(agent(), QUESTION)
        deltas = [event async for event in result.stream_events() if event.type == "raw_response_event"]
        assert len(deltas) > 3
        assert result.final_output

    @checks.add(row, "tools")
    async def tools() -> None:
        result = await Runner.run(agent(tools=[get_weather], model_settings=CALLING), QUESTION)
        assert kinds(result.new_items)[:2] == ["tool_call_item", "tool_call_output_item"]
        assert result.final_output is not None

    @checks.add(row, "second turn")
    async def second_turn() -> None:
        caller = agent(tools=[get_weather], model_settings=CALLING)
        first = await Runner.run(caller, QUESTION)
        history = [*first.to_input_list(), {"role": "user", "content": "And in Berlin?"}]
        second = await Runner.run(caller, history)
        assert "tool_call_output_item" in kinds(second.new_items)
        stored = json.loads(json.dumps(second.to_input_list()))
        third = await Runner.run(agent(), [*stored, {"role": "user", "content": QUESTION}])
        assert third.final_output is not None

    @checks.add(row, "second turn")
    async def handed_off() -> None:
        first = agent(handoffs=[handoff(agent(name="other"))], model_settings=CALLING)
        result = await Runner.run(first, QUESTION)
        assert result.last_agent.name == "other"

    @checks.add(row, "streamed tools")
    async def streamed_tools() -> None:
        result = Runner.run_streamed(agent(tools=[get_weather], model_settings=CALLING), QUESTION)
        names = [event.name async for event in result.stream_events() if event.type == "run_item_stream_event"]
        assert names[:2] == ["tool_called", "tool_output"]
        assert result.final_output is not None

    @checks.add(row, "structured")
    async def structured() -> None:
        result = await Runner.run(agent(output_type=Report), QUESTION)
        assert isinstance(result.final_output, Report)

    @checks.add(row, "structured")
    async def structured_with_tools() -> None:
        caller = agent(tools=[get_weather_once], model_settings=CALLING, output_type=Report)
        result = await Runner.run(caller, QUESTION, context=Calls())
        assert "tool_call_output_item" in kinds(result.new_items)
        assert isinstance(result.final_output, Report)


add_checks("openai-agents chat", OpenAIChatCompletionsModel(model=MODEL_ID, openai_client=client))
add_checks("openai-agents responses", OpenAIResponsesModel(model=MODEL_ID, openai_client=client))

if __name__ == "__main__":
    checks.run()
