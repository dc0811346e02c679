"""langchain-openai's chat model on both routes, and langchain's agents with each strategy for a structured answer."""

from collections.abc import Callable
from typing import Any, Literal

from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, ModelResponse, wrap_model_call
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain.messages import AIMessage, HumanMessage
from langchain.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from tests.clients.capabilities import MAX_TOKENS, MODEL_ID, QUESTION, WEATHER, Checks, check_arguments

checks = Checks()


class Report(BaseModel):
    """The weather somewhere."""

    city: Literal["Paris", "Berlin"]
    unit: Literal["C", "F"]


@tool
def get_weather(city: Literal["Paris", "Berlin"], unit: Literal["C", "F"]) -> str:
    """Tell the weather."""
    check_arguments({"city": city, "unit": unit})
    return WEATHER


@wrap_model_call
def call_first(request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]) -> ModelResponse:
    """Force a call in answer to a person; a model this small seldom calls by itself."""
    is_first = isinstance(request.messages[-1], HumanMessage)
    return handler(request.override(tool_choice="get_weather" if is_first else "none"))


@wrap_model_call
def call_once(request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]) -> ModelResponse:
    """Offer tools to a person's turn only: with a form no choice is forced, and a small model would call for ever."""
    is_first = isinstance(request.messages[-1], HumanMessage)
    one_call = {"parallel_tool_calls": False}
    return handler(request.override(model_settings=one_call) if is_first else request.override(tools=[]))


def add_checks(row: str, **model_fields: Any) -> None:
    """The chat model and an agent with it, on one route."""
    model = ChatOpenAI(model=MODEL_ID, max_retries=0, timeout=60, max_tokens=MAX_TOKENS, temperature=0, **model_fields)

    @checks.add(row, "plain")
    def plain() -> None:
        answer = model.invoke([("system", "Answer briefly."), ("human", QUESTION)])
        assert answer.text
        assert answer.usage_metadata

    @checks.add(row, "streamed")
    def streamed() -> None:
        chunks = list(model.stream(QUESTION))
        assert len([chunk for chunk in chunks if chunk.text]) > 1
        assert [chunk for chunk in chunks if chunk.usage_metadata]

    @checks.add(row, "tools")
    def tools() -> None:
        answer = model.bind_tools([get_weather], tool_choice="get_weather", strict=True).invoke(QUESTION)
        assert answer.tool_calls
        check_arguments(answer.tool_calls[0]["args"])

    @checks.add(row, "second turn")
    def second_turn() -> None:
        agent = create_agent(model, [get_weather], system_prompt="Be brief.", middleware=[call_first])
        first = agent.invoke({"messages": [HumanMessage(QUESTION)]})
        kinds = [message.type for message in first["messages"]]
        assert kinds[:2] == ["human", "ai"]
        assert "tool" in kinds
        assert kinds[-1] == "ai"
        again = agent.invoke({"messages": [*first["messages"], HumanMessage("And in Berlin?")]})
        assert isinstance(again["messages"][-1], AIMessage)

    @checks.add(row, "streamed tools")
    def streamed_tools() -> None:
        agent = create_agent(model, [get_weather], middleware=[call_first])
        pieces = list(agent.stream({"messages": [HumanMessage(QUESTION)]}, stream_mode="messages"))
        assert [piece for piece, _ in pieces if getattr(piece, "tool_call_chunks", None)]
        assert [piece for piece, _ in pieces if piece.type == "tool"]

    @checks.add(row, "structured")
    def structured() -> None:
        for method in ("json_schema", "function_calling", "json_mode"):
            chain = model.with_structured_output(Report if method != "json_mode" else None, method=method)
            answer = chain.with_retry(stop_after_attempt=1).invoke(f"{QUESTION} Answer in JSON.")
            assert isinstance(answer, Report if method != "json_mode" else dict), (method, answer)

    @checks.add(row, "structured")
    def structured_agent() -> None:
        for strategy in (ToolStrategy(Report), ProviderStrategy(Report)):
            state = create_agent(model, response_format=strategy).invoke({"messages": [HumanMessage(QUESTION)]})
            assert isinstance(state["structured_response"], Report), strategy

    @checks.add(row, "structured")
    def structured_agent_with_tools() -> None:
        agent = create_agent(model, [get_weather], middleware=[call_once], response_format=ProviderStrategy(Report))
        state = agent.invoke({"messages": [HumanMessage(QUESTION)]})
        assert isinstance(state["structured_response"], Report)


add_checks("langchain chat", stream_usage=True)
add_checks("langchain responses", use_responses_api=True, output_version="responses/v1")

if __name__ == "__main__":
    checks.run()
