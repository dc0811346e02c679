"""One round trip of a tool call with the OpenAI SDK: the model calls, we run the function, the model answers.

SERVER_URL says where the service is, SERVER_KEY the API key if it needs one.
"""

import json
import os

import openai
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam

URL = os.environ.get("SERVER_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("SERVER_KEY", "unused")  # the SDK wants one, also where the service does not
MODEL = "smollm2-135m-instruct"

TOOL: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "get_temperature",
        "description": "The temperature of the air in a city, in degrees Celsius",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 40}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def get_temperature(city: str) -> dict[str, object]:
    """What the tool does; a real one would ask a weather service."""
    return {"city": city, "celsius": 21}


def main() -> None:
    """Ask, run the function that the model calls, send back what it gave."""
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the temperature in Paris?"}]
    with openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY) as client:
        first = client.chat.completions.create(
            model=MODEL,
            messages=messages,
            tools=[TOOL],
            tool_choice="required",  # a model this small seldom calls by itself
            parallel_tool_calls=False,
            temperature=0,
            max_tokens=100,
        )
        call = (first.choices[0].message.tool_calls or [])[0]
        assert call.type == "function"
        print("called:", call.function.name, call.function.arguments)
        result = get_temperature(**json.loads(call.function.arguments))
        messages += [
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": call.id,
                        "type": "function",
                        "function": {"name": call.function.name, "arguments": call.function.arguments},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": call.id, "content": json.dumps(result)},
        ]
        last = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=60)
    print("answer:", last.choices[0].message.content)


if __name__ == "__main__":
    main()
