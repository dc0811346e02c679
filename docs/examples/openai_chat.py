"""A chat with the OpenAI SDK (`pip install openai`): whole, streamed, and an error.

SERVER_URL says where the service is, SERVER_KEY the API key if it needs one.
"""

import os

import openai

URL = os.environ.get("SERVER_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("SERVER_KEY", "unused")  # the SDK wants one, also where the service does not
MODEL = "smollm2-135m-instruct"
QUESTION = "Name the capital of France."


def main() -> None:
    """Ask thrice."""
    with openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY) as client:
        answer = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": QUESTION}], temperature=0
        )
        print("whole:", answer.choices[0].message.content)

        print("streamed: ", end="")
        chunks = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"repetition_penalty": 1.05},  # fields that OpenAI does not have
        )
        for chunk in chunks:
            if chunk.choices:
                print(chunk.choices[0].delta.content or "", end="", flush=True)
            elif chunk.usage is not None:
                print(f"\n{chunk.usage.completion_tokens} tokens")

        try:
            client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": QUESTION}], temperature=9)
        except openai.BadRequestError as error:
            print("refused:", error.param, error.code)


if __name__ == "__main__":
    main()
