"""An answer that is an object of a pydantic class, with the OpenAI SDK (`pip install openai`).

SERVER_URL says where the service is, SERVER_KEY the API key if it needs one.
"""

import os
from typing import Literal

import openai
from pydantic import BaseModel, Field

URL = os.environ.get("SERVER_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("SERVER_KEY", "unused")  # the SDK wants one, also where the service does not


class City(BaseModel):
    """Bounded fields: a small model would otherwise write a name without end, and an answer cut off is not JSON."""

    name: str = Field(max_length=40)
    continent: Literal["Africa", "America", "Asia", "Europe", "Oceania"]
    inhabitants: int = Field(ge=0, le=40_000_000)


def main() -> None:
    """Ask for a city."""
    with openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY) as client:
        answer = client.chat.completions.parse(
            model="smollm2-135m-instruct",
            messages=[{"role": "user", "content": "Describe Paris: its name, continent and number of inhabitants."}],
            response_format=City,
            temperature=0,
            max_tokens=100,
        )
    city = answer.choices[0].message.parsed
    assert city is not None, "a finished answer always fits"
    print(city.model_dump_json())


if __name__ == "__main__":
    main()
