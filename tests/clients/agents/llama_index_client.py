"""llama-index: its model class for servers like OpenAI's, on both routes, and its function agent."""

from typing import Any, Literal

from llama_index.core.agent.workflow import FunctionAgent, ToolCallResult
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import Context
from llama_index.llms.openai_like import OpenAILike, OpenAILikeResponses
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


class Report(BaseModel):
    """The weather somewhere."""

    city: Literal["Paris", "Berlin"]
    unit: Literal["C", "F"]


def get_weather(city: Literal["Paris", "Berlin"], unit: Literal["C", "F"]) -> str:
    """Tell the weather."""
    check_arguments({"city": city, "unit": unit})
    return WEATHER


FIELDS: dict[str, Any] = {
    "model": MODEL_ID,
    "api_base": base_url(),
    "api_key": api_key(),
    "context_window": 8192,
    "max_retries": 0,
    "temperature": 0.0,
    "timeout": 60.0,
    "is_function_calling_model": True,
}


def add_checks(row: str, llm: Any) -> None:
    """The model class and an agent with it, on one route."""
    messages = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content=QUESTION)]
    tool = FunctionTool.from_defaults(get_weather)

    @checks.add(row, "plain")
    def plain() -> None:
        assert llm.chat(messages).message.content

    @checks.add(row, "plain")
    async def plain_agent() -> None:
        agent = FunctionAgent(llm=llm, tools=[], system_prompt="Be brief.", streaming=False)
        assert (await agent.run(QUESTION)).response.content

    @checks.add(row, "streamed")
    def streamed() -> None:
        assert len([chunk for chunk in llm.stream_chat(messages) if chunk.delta]) > 1

    @checks.add(row, "tools")
    def tools() -> None:
        answer = llm.chat_with_tools([tool], user_msg=QUESTION, tool_choice="get_weather")
        calls = llm.get_tool_calls_from_response(answer)
        check_arguments(calls[0].tool_kwargs)

    @checks.add(row, "second turn")
    async def second_turn() -> None:
        agent = FunctionAgent(llm=llm, tools=[tool], initial_tool_choice="get_weather", streaming=False)
        context = Context(agent)
        first = await agent.run(QUESTION, ctx=context)
        assert first.tool_calls
        second = await agent.run("And in Berlin?", ctx=context)
        assert second.response is not None

    @checks.add(row, "streamed tools")
    async def streamed_tools() -> None:
        agent = FunctionAgent(llm=llm, tools=[tool], initial_tool_choice="get_weather")
        handler = agent.run(QUESTION)
        results = [event async for event in handler.stream_events() if isinstance(event, ToolCallResult)]
        assert results
        assert results[0].tool_output.content == WEATHER
        await handler

    @checks.add(row, "structured")
    def structured() -> None:
        answer = llm.as_structured_llm(Report).chat(messages)
        assert isinstance(answer.raw, Report)


add_checks("llama-index chat", OpenAILike(is_chat_model=True, max_tokens=MAX_TOKENS, **FIELDS))
add_checks("llama-index responses", OpenAILikeResponses(max_output_tokens=MAX_TOKENS, **FIELDS))


@checks.add("llama-index chat", "structured")
def structured_as_json() -> None:
    """The form as a JSON schema in the response format."""
    llm = OpenAILike(is_chat_model=True, should_use_structured_outputs=True, max_tokens=MAX_TOKENS, **FIELDS)
    messages = [ChatMessage(role="user", content=QUESTION)]
    assert isinstance(llm.as_structured_llm(Report).chat(messages).raw, Report)
    *_, last = llm.as_structured_llm(Report).stream_chat(messages)
    Report.model_validate(last.raw.model_dump())  # type: ignore[union-attr]


if __name__ == "__main__":
    checks.run()
