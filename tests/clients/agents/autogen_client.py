"""AutoGen: its model client, its assistant with tools and with a typed answer, and a team of two."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.base import TaskResult
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core.models import CreateResult, LLMMessage, ModelInfo, UserMessage
from autogen_core.tools import FunctionTool
from autogen_ext.models.openai import OpenAIChatCompletionClient
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
ROW = "autogen"
INFO = ModelInfo(
    vision=False,
    function_calling=True,
    json_output=True,
    family="unknown",
    structured_output=True,
    multiple_system_messages=True,
)


class Report(BaseModel):
    """The weather somewhere."""

    city: Literal["Paris", "Berlin"]
    unit: Literal["C", "F"]


async def get_weather(city: Literal["Paris", "Berlin"], unit: Literal["C", "F"]) -> str:
    """Tell the weather."""
    check_arguments({"city": city, "unit": unit})
    return WEATHER


class CallingFirst(OpenAIChatCompletionClient):
    """Forces a call in answer to a person; a model this small seldom calls by itself."""

    async def create(self, messages: Sequence[LLMMessage], **fields: Any) -> CreateResult:
        """An answer, a call when it is to a person."""
        return await super().create(messages, **fields | choice_for(messages, fields))

    async def create_stream(
        self, messages: Sequence[LLMMessage], **fields: Any
    ) -> AsyncGenerator[str | CreateResult, None]:
        """A streamed answer, a call when it is to a person."""
        async for piece in super().create_stream(messages, **fields | choice_for(messages, fields)):
            yield piece


def choice_for(messages: Sequence[LLMMessage], fields: dict[str, Any]) -> dict[str, Any]:
    """The tool choice of a turn."""
    is_called = bool(fields.get("tools")) and isinstance(messages[-1], UserMessage)
    return {"tool_choice": "required"} if is_called else {}


def model(client: type[OpenAIChatCompletionClient] = CallingFirst, **fields: Any) -> OpenAIChatCompletionClient:
    """A model client, set up as for any server that is not OpenAI's."""
    return client(
        model=MODEL_ID,
        base_url=base_url(),
        api_key=api_key(),
        model_info=INFO,
        max_retries=0,
        max_tokens=MAX_TOKENS,
        parallel_tool_calls=False,
        temperature=0,
        **fields,
    )


def kinds(result: TaskResult) -> list[str]:
    """The types of the messages of a run."""
    return [message.type for message in result.messages]


@checks.add(ROW, "plain")
async def plain() -> None:
    """The assistant as it comes, without tools."""
    result = await AssistantAgent("helper", model()).run(task=QUESTION)
    assert kinds(result)[-1] == "TextMessage"


@checks.add(ROW, "streamed")
async def streamed() -> None:
    """The assistant streams its tokens."""
    agent = AssistantAgent("helper", model(), model_client_stream=True)
    events = [event async for event in agent.run_stream(task=QUESTION)]
    assert [event for event in events if getattr(event, "type", "") == "ModelClientStreamingChunkEvent"]
    assert isinstance(events[-1], TaskResult)


@checks.add(ROW, "tools")
async def tools() -> None:
    """The model client alone, told to call one tool."""
    tool = FunctionTool(get_weather, description="Tell the weather.", strict=True)
    user = UserMessage(content=QUESTION, source="user")
    result = await model(OpenAIChatCompletionClient).create([user], tools=[tool], tool_choice=tool)
    assert not isinstance(result.content, str)
    check_arguments(result.content[0].arguments)


@checks.add(ROW, "second turn")
async def second_turn() -> None:
    """Call, result, reflection on it, and one more turn on top of all that."""
    agent = AssistantAgent("helper", model(), tools=[get_weather], reflect_on_tool_use=True)
    first = await agent.run(task=QUESTION)
    assert "ToolCallExecutionEvent" in kinds(first)
    assert kinds(first)[-1] == "TextMessage"
    second = await agent.run(task="And in Berlin?")
    assert kinds(second)[-1] == "TextMessage"


@checks.add(ROW, "second turn")
async def team() -> None:
    """Two assistants in turn, each with the other's messages in its history."""
    pair = [AssistantAgent(name, model(), system_message="Be brief.") for name in ("first", "second")]
    result = await RoundRobinGroupChat(pair, termination_condition=MaxMessageTermination(4)).run(task=QUESTION)
    assert len(result.messages) == 4


@checks.add(ROW, "streamed tools")
async def streamed_tools() -> None:
    """The same loop, streamed."""
    agent = AssistantAgent("helper", model(), tools=[get_weather], reflect_on_tool_use=True, model_client_stream=True)
    events = [event async for event in agent.run_stream(task=QUESTION)]
    assert "ToolCallExecutionEvent" in [getattr(event, "type", "") for event in events]


@checks.add(ROW, "structured")
async def structured() -> None:
    """A typed answer."""
    result = await AssistantAgent("helper", model(), output_content_type=Report).run(task=QUESTION)
    assert isinstance(getattr(result.messages[-1], "content", None), Report)


@checks.add(ROW, "structured")
async def structured_with_tools() -> None:
    """A typed answer after a call: every turn sends the tools and the form."""
    tool = FunctionTool(get_weather, description="Tell the weather.", strict=True)
    agent = AssistantAgent(
        "helper", model(), tools=[tool], output_content_type=Report, reflect_on_tool_use=True, max_tool_iterations=2
    )
    result = await agent.run(task=QUESTION)
    assert "ToolCallExecutionEvent" in kinds(result)
    assert isinstance(getattr(result.messages[-1], "content", None), Report)


if __name__ == "__main__":
    checks.run()
