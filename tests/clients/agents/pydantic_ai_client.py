"""pydantic-ai's agents with its chat model and its responses model, and with each kind of output."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_ai import Agent, ModelMessagesTypeAdapter, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.models import Model
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from tests.clients.capabilities import (
    MAX_TOKENS,
    MODEL_ID,
    QUESTION,
    SPELLED_REPORT,
    WEATHER,
    Checks,
    api_key,
    base_url,
    check_arguments,
)

checks = Checks()
provider = OpenAIProvider(base_url=base_url(), api_key=api_key())
BRIEF = ModelSettings(max_tokens=MAX_TOKENS, temperature=0, timeout=60)


class Report(BaseModel):
    """The weather somewhere."""

    city: Literal["Paris", "Berlin"]
    unit: Literal["C", "F"]


def get_weather(city: Literal["Paris", "Berlin"], unit: Literal["C", "F"]) -> str:
    """Tell the weather."""
    check_arguments({"city": city, "unit": unit})
    return WEATHER


@dataclass
class CallFirst(AbstractCapability[Any]):
    """Force a call in the first step only; a model this small seldom calls by itself."""

    def get_model_settings(self) -> Any:
        """The settings of a step."""
        return lambda context: ModelSettings(tool_choice=["get_weather"] if context.run_step == 1 else "none")


def parts(messages: list[Any]) -> list[str]:
    """The kinds of the parts of messages."""
    return [part.part_kind for message in messages for part in message.parts]


def add_checks(row: str, model: Model) -> None:
    """An agent with each feature, on one of the two models."""
    simple = Agent(model, instructions="Be brief.", model_settings=BRIEF)
    caller = Agent(model, tools=[get_weather], model_settings=BRIEF, capabilities=[CallFirst()])

    @checks.add(row, "plain")
    async def plain() -> None:
        result = await simple.run(QUESTION)
        assert result.output

    @checks.add(row, "streamed")
    async def streamed() -> None:
        async with simple.run_stream(QUESTION) as result:
            pieces = [piece async for piece in result.stream_text(delta=True)]
        assert pieces
        assert result.usage.output_tokens

    @checks.add(row, "tools")
    async def tools() -> None:
        result = await caller.run(QUESTION)
        kinds = parts(result.all_messages())
        assert kinds.index("tool-call") < kinds.index("tool-return")
        assert result.output is not None

    @checks.add(row, "second turn")
    async def second_turn() -> None:
        first = await caller.run(QUESTION)
        second = await caller.run("And in Berlin?", message_history=first.all_messages())
        stored = ModelMessagesTypeAdapter.validate_json(second.all_messages_json())
        third = await simple.run("And in Paris?", message_history=stored)
        assert third.output is not None

    @checks.add(row, "streamed tools")
    async def streamed_tools() -> None:
        async with caller.run_stream_events(QUESTION) as events:
            kinds = [event.event_kind async for event in events]
        assert "function_tool_call" in kinds
        assert "function_tool_result" in kinds

    @checks.add(row, "structured")
    async def structured() -> None:
        for output in (Report, ToolOutput(Report), NativeOutput(Report)):
            result = await Agent(model, output_type=output, model_settings=BRIEF, retries=0).run(QUESTION)
            assert isinstance(result.output, Report), output

    @checks.add(row, "structured")
    async def structured_by_prompt() -> None:
        agent = Agent(model, output_type=PromptedOutput(Report), model_settings=BRIEF)
        result = await agent.run(f"Repeat this: {SPELLED_REPORT}")
        assert isinstance(result.output, Report)

    @checks.add(row, "structured")
    async def structured_with_tools() -> None:
        for output in (ToolOutput(Report), NativeOutput(Report)):
            agent = Agent(
                model, output_type=output, tools=[get_weather], model_settings=BRIEF, capabilities=[CallFirst()]
            )
            result = await agent.run(QUESTION)
            assert "tool-return" in parts(result.all_messages())
            assert isinstance(result.output, Report), output


add_checks("pydantic-ai chat", OpenAIChatModel(MODEL_ID, provider=provider))
add_checks("pydantic-ai responses", OpenAIResponsesModel(MODEL_ID, provider=provider))

if __name__ == "__main__":
    checks.run()
