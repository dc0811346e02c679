"""Semantic Kernel: its chat completion agent and its responses agent, with a plugin and with a typed answer."""

from enum import StrEnum
from typing import Any, Literal

from openai import AsyncOpenAI
from pydantic import BaseModel
from semantic_kernel.agents import ChatCompletionAgent, OpenAIResponsesAgent
from semantic_kernel.connectors.ai import FunctionChoiceBehavior
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion, OpenAIChatPromptExecutionSettings
from semantic_kernel.functions import KernelArguments, kernel_function

from tests.clients.capabilities import MAX_TOKENS, MODEL_ID, QUESTION, WEATHER, Checks, check_arguments, spelled_call

checks = Checks()
client = AsyncOpenAI(max_retries=0, timeout=60)
CHAT = "semantic-kernel chat"
RESPONSES = "semantic-kernel responses"
CALL_IT = f"Repeat this: {spelled_call('Weather-get_weather')}"  # the responses agent sends no tool_choice


class Report(BaseModel):
    """The weather somewhere."""

    city: Literal["Paris", "Berlin"]
    unit: Literal["C", "F"]


class City(StrEnum):
    """Where."""

    PARIS = "Paris"
    BERLIN = "Berlin"


class Unit(StrEnum):
    """Celsius or Fahrenheit."""

    CELSIUS = "C"
    FAHRENHEIT = "F"


class Weather:
    """A plugin that counts its calls."""

    def __init__(self) -> None:
        self.num_calls = 0

    @kernel_function
    def get_weather(self, city: City, unit: Unit) -> str:
        """Tell the weather."""
        check_arguments({"city": str(city), "unit": str(unit)})
        self.num_calls += 1
        return WEATHER


def chat_agent(plugins: list[Any], **settings: Any) -> ChatCompletionAgent:
    """A chat completion agent."""
    execution = OpenAIChatPromptExecutionSettings(max_tokens=MAX_TOKENS, temperature=0, **settings)
    return ChatCompletionAgent(
        service=OpenAIChatCompletion(ai_model_id=MODEL_ID, async_client=client),
        name="helper",
        instructions="Be brief.",
        plugins=plugins,
        function_choice_behavior=FunctionChoiceBehavior.Required() if plugins else None,
        arguments=KernelArguments(execution),
    )


def responses_agent(plugins: list[Any], **fields: Any) -> OpenAIResponsesAgent:
    """A responses agent that stores nothing."""
    if plugins:
        fields["function_choice_behavior"] = FunctionChoiceBehavior.Required(maximum_auto_invoke_attempts=2)
    return OpenAIResponsesAgent(
        ai_model_id=MODEL_ID,
        client=client,
        name="helper",
        instructions="Be brief.",
        plugins=plugins,
        store_enabled=False,
        temperature=0,
        **fields,
    )


def add_checks(row: str, agent_of: Any) -> None:
    """One of the two agents."""

    @checks.add(row, "plain")
    async def plain() -> None:
        assert str((await agent_of([]).get_response(messages=QUESTION)).content)

    @checks.add(row, "streamed")
    async def streamed() -> None:
        pieces = [str(item.content) async for item in agent_of([]).invoke_stream(messages=QUESTION)]
        assert len([piece for piece in pieces if piece]) > 1

    @checks.add(row, "tools")
    async def tools() -> None:
        weather = Weather()
        await agent_of([weather]).get_response(messages=CALL_IT)
        assert weather.num_calls

    @checks.add(row, "second turn")
    async def second_turn() -> None:
        weather = Weather()
        agent = agent_of([weather])
        first = await agent.get_response(messages=CALL_IT)
        second = await agent.get_response(messages="And in Berlin?", thread=first.thread)
        assert second.thread is first.thread
        assert weather.num_calls

    @checks.add(row, "streamed tools")
    async def streamed_tools() -> None:
        weather = Weather()
        async for _ in agent_of([weather]).invoke_stream(messages=CALL_IT):
            pass
        assert weather.num_calls


add_checks(CHAT, chat_agent)
add_checks(RESPONSES, responses_agent)


@checks.add(CHAT, "structured")
async def structured() -> None:
    """A class as the response format."""
    answer = await chat_agent([], response_format=Report).get_response(messages=QUESTION)
    Report.model_validate_json(str(answer.content))


@checks.add(CHAT, "structured")
async def structured_with_tools() -> None:
    """A class as the response format of an agent with a plugin."""
    weather = Weather()
    answer = await chat_agent([weather], response_format=Report).get_response(messages=QUESTION)
    assert weather.num_calls
    Report.model_validate_json(str(answer.content))


@checks.add(RESPONSES, "structured")
async def structured_response() -> None:
    """A class as the text format."""
    text = OpenAIResponsesAgent.configure_response_format(Report)
    answer = await responses_agent([], text=text).get_response(messages=QUESTION)
    Report.model_validate_json(str(answer.content))


if __name__ == "__main__":
    checks.run()
