"""Requests that must be refused, with the answer that each must get. Data, apart from the test that sends them."""

import json
from dataclasses import dataclass
from typing import Any

from tests.support.api_client import CHAT, COMPLETIONS, GENERATE, RESPONSES, Json, body_for

DETOKENIZE, TOKENIZE = "/detokenize", "/tokenize"
VOCABULARY = "token id 257 is out of range; ids are from 0 to 256"
BIG_OBJECT = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(5000)}}


@dataclass(frozen=True)
class BadInput:
    """name: of the test. content: the body as it is sent. message: a part of it."""

    name: str
    route: str
    content: bytes
    param: str | None
    message: str
    status: int = 400


def nested(depth: int, inner: Any = True) -> Any:
    """An object in an object in an object."""
    for _ in range(depth):
        inner = {"a": inner}
    return inner


def nested_schema(depth: int) -> Json:
    """A schema of objects within objects."""
    schema: Json = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def function(name: str = "f", **fields: Any) -> Json:
    """A tool of a chat."""
    return {"type": "function", "function": {"name": name, **fields}}


def messages(*given: Json) -> Json:
    """A chat of these messages."""
    return {"messages": list(given)}


def json_schema(schema: Any) -> Json:
    """A response format."""
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def bad(route: str, name: str, fields: Json, param: str | None, message: str, status: int = 400) -> BadInput:
    """A good body with some fields replaced."""
    body = {**(body_for(route) if route.startswith("/v1") else {}), **fields}
    return BadInput(f"{route}: {name}", route, json.dumps(body).encode(), param, message, status)


def raw(route: str, name: str, content: str | bytes, param: str | None, message: str, status: int = 400) -> BadInput:
    """A body that no JSON encoder would write."""
    given = content if isinstance(content, bytes) else content.encode()
    return BadInput(f"{route}: {name}", route, given, param, message, status)


USER: Json = {"role": "user", "content": "hi"}
CALL: Json = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}

BODIES = [
    raw(COMPLETIONS, "10 MB", b'{"prompt": "' + b"x" * 10_000_000 + b'"}', None, "larger than 4194304 bytes", 413),
    raw(CHAT, "10 MB of spaces", b" " * 10_000_000, None, "larger than 4194304 bytes", 413),
    raw(COMPLETIONS, "empty", b"", None, "must be a JSON object"),
    raw(COMPLETIONS, "truncated", '{"model": "fake", "prompt": "hi', None, "not valid JSON"),
    raw(COMPLETIONS, "trailing comma", '{"model": "fake",}', None, "not valid JSON"),
    raw(COMPLETIONS, "two documents", '{"a": 1}{"b": 2}', None, "not valid JSON"),
    raw(COMPLETIONS, "single quotes", "{'prompt': 'hi'}", None, "not valid JSON"),
    raw(COMPLETIONS, "no UTF-8", b'{"model": "fake", "prompt": "\xff\xfe"}', None, "JSON"),
    raw(COMPLETIONS, "half a character", b'{"model": "fake", "prompt": "\xe2\x82"}', None, "JSON"),
    raw(COMPLETIONS, "a zero byte", b'{"prompt": \x00}', None, "not valid JSON"),
    raw(COMPLETIONS, "100,000 brackets", "[" * 100_000, None, "JSON"),
    raw(COMPLETIONS, "100,000 closed brackets", "[" * 100_000 + "]" * 100_000, None, "JSON"),
    raw(COMPLETIONS, "100,000 objects", '{"a":' * 100_000 + "1" + "}" * 100_000, None, "JSON"),
    raw(CHAT, "900 brackets", '{"model":"fake","messages":' + "[" * 900 + "]" * 900 + "}", "messages.0", "dictionary"),
    raw(COMPLETIONS, "a list", "[]", None, "must be a JSON object"),
    raw(COMPLETIONS, "a number", "1", None, "must be a JSON object"),
    raw(COMPLETIONS, "null", "null", None, "must be a JSON object"),
    raw(GENERATE, "NaN", '{"prompt": "hi", "temperature": NaN}', "temperature", "temperature"),
    raw(GENERATE, "Infinity", '{"prompt": "hi", "temperature": Infinity}', "temperature", "temperature"),
    raw(GENERATE, "-Infinity", '{"prompt": "hi", "presence_penalty": -Infinity}', "presence_penalty", "penalty"),
    raw(GENERATE, "1e999", '{"prompt": "hi", "repetition_penalty": 1e999}', "repetition_penalty", "penalty"),
    raw(GENERATE, "NaN as an integer", '{"prompt": "hi", "n": NaN}', "n", "n: "),
    raw(GENERATE, "NaN as a bias", '{"prompt": "hi", "logit_bias": {"1": NaN}}', "logit_bias", "logit_bias"),
    raw(GENERATE, "1e999 as a bias", '{"prompt": "hi", "logit_bias": {"1": 1e999}}', "logit_bias", "logit_bias"),
    raw(
        GENERATE, "NaN in a schema", '{"prompt": "hi", "guided_json": {"const": NaN}}', "guided_json", "must be finite"
    ),
    raw(GENERATE, "4,400 digits", '{"prompt": "hi", "seed": ' + "9" * 4400 + "}", None, "could not be read"),
]
RANGES = [
    bad(COMPLETIONS, "min_tokens > max_tokens", {"min_tokens": 9}, "min_tokens", "at most max_tokens, 8"),
    bad(COMPLETIONS, "min_tokens < 0", {"min_tokens": -1}, "min_tokens", "greater than or equal to 0"),
    bad(COMPLETIONS, "top_k", {"top_k": -2}, "top_k", "greater than or equal to -1"),
    bad(COMPLETIONS, "top_k is a float", {"top_k": 1.5}, "top_k", "valid integer"),
    bad(COMPLETIONS, "min_p", {"min_p": 1.01}, "min_p", "less than or equal to 1"),
    bad(COMPLETIONS, "top_p", {"top_p": 1.01}, "top_p", "less than or equal to 1"),
    bad(
        COMPLETIONS,
        "repetition_penalty",
        {"repetition_penalty": 0},
        "repetition_penalty",
        "greater than or equal to 0.01",
    ),
    bad(COMPLETIONS, "presence_penalty", {"presence_penalty": 2.5}, "presence_penalty", "less than or equal to 2"),
    bad(COMPLETIONS, "frequency_penalty", {"frequency_penalty": -3}, "frequency_penalty", "equal to -2"),
    bad(COMPLETIONS, "logprobs", {"logprobs": 21}, "logprobs", "less than or equal to 20"),
    bad(COMPLETIONS, "logprobs as in chat", {"logprobs": True}, "logprobs", "valid integer"),
    bad(COMPLETIONS, "prompt_logprobs", {"prompt_logprobs": 21}, "prompt_logprobs", "less than or equal to 20"),
    bad(COMPLETIONS, "truncation", {"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "equal to -1"),
    bad(COMPLETIONS, "truncated to nothing", {"truncate_prompt_tokens": 0}, "prompt", "the prompt is empty"),
    bad(COMPLETIONS, "deadline", {"deadline_ms": 0}, "deadline_ms", "greater than or equal to 1"),
    bad(COMPLETIONS, "priority", {"priority": 2**31}, "priority", "less than or equal to"),
    bad(COMPLETIONS, "cache_salt", {"cache_salt": ""}, "cache_salt", "at least 1 character"),
    bad(COMPLETIONS, "n 0", {"n": 0}, "n", "greater than or equal to 1"),
    bad(COMPLETIONS, "n 17", {"n": 17}, "n", "less than or equal to 16"),
    bad(COMPLETIONS, "best_of < n", {"n": 3, "best_of": 2}, "best_of", "must be at least n, 3"),
    bad(COMPLETIONS, "best_of streamed", {"best_of": 2, "stream": True}, "best_of", "cannot be streamed"),
    bad(COMPLETIONS, "too many answers", {"prompt": ["hi"] * 9, "n": 15}, "prompt", "make 135; at most 128"),
    bad(COMPLETIONS, "too many prompts", {"prompt": ["a"] * 129}, "prompt", "at most 128 items"),
    bad(COMPLETIONS, "too many id prompts", {"prompt": [[1]] * 129}, "prompt", "at most 128 items"),
    bad(COMPLETIONS, "one empty prompt of two", {"prompt": ["a", ""]}, "prompt", "the prompt is empty"),
    bad(COMPLETIONS, "one empty list of two", {"prompt": [[1], []]}, "prompt", "the prompt is empty"),
    bad(COMPLETIONS, "mixed prompts", {"prompt": ["a", [1]]}, "prompt.0", "valid"),
    bad(COMPLETIONS, "long stop string", {"stop": "x" * 513}, "stop", "at most 512 characters"),
    bad(COMPLETIONS, "17 stop strings", {"stop": ["x"] * 17}, "stop", "at most 16 items"),
    bad(COMPLETIONS, "stop is a number", {"stop": 5}, "stop", "valid"),
    bad(COMPLETIONS, "empty bad word", {"bad_words": [""]}, "bad_words.0", "at least 1 character"),
    bad(COMPLETIONS, "too many bad words", {"bad_words": ["a"] * 257}, "bad_words", "at most 256 items"),
    bad(COMPLETIONS, "tokens of another kind", {"add_special_tokens": 1}, "add_special_tokens", "accepted only"),
    bad(COMPLETIONS, "suffix", {"suffix": "x"}, "suffix", "cannot fill in a middle"),
    bad(COMPLETIONS, "nothing to generate", {"max_tokens": 0}, "max_tokens", "echo: true to score"),
    bad(COMPLETIONS, "max_tokens -2", {"max_tokens": -2}, "max_tokens", "greater than or equal to 0"),
    bad(GENERATE, "seed of 65 bits", {"seed": 2**63}, "seed", "less than"),
    bad(GENERATE, "eight and a half", {"max_tokens": 8.5}, "max_tokens", "valid integer"),
    bad(CHAT, "top_logprobs alone", {"top_logprobs": 2}, "top_logprobs", "needs logprobs: true"),
    bad(CHAT, "top_logprobs 21", {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
    bad(CHAT, "logprobs as in completions", {"logprobs": 1}, "logprobs", "valid boolean"),
    bad(CHAT, "best_of", {"best_of": 2}, "best_of", "/v1/completions has it"),
    bad(RESPONSES, "max_tokens", {"max_tokens": 5}, "max_tokens", "not a field"),
    bad(RESPONSES, "max_output_tokens", {"max_output_tokens": 600}, "max_output_tokens", "from 1 to"),
    bad(RESPONSES, "previous_response_id", {"previous_response_id": "r"}, "previous_response_id", "nothing is stored"),
    bad(RESPONSES, "store", {"store": True}, "store", "false"),
    bad(RESPONSES, "background", {"background": True}, "background", "false"),
    bad(RESPONSES, "metadata", {"metadata": "b"}, "metadata", "dictionary"),
    bad(RESPONSES, "reasoning", {"reasoning": {"effort": "high"}}, "reasoning", "does not reason"),
    bad(RESPONSES, "long input", {"input": "x" * 600}, "input", "the prompt has 6"),
    bad(RESPONSES, "no input", {"input": []}, "input", "at least 1 item"),
]
TOKEN_IDS = [
    bad(COMPLETIONS, "prompt", {"prompt": [257]}, "prompt", VOCABULARY),
    bad(COMPLETIONS, "second prompt", {"prompt": [[1], [257]]}, "prompt", VOCABULARY),
    bad(COMPLETIONS, "negative prompt", {"prompt": [-1]}, "prompt", "token id -1 is out of range"),
    bad(GENERATE, "prompt", {"prompt": [1, 257]}, "prompt", VOCABULARY),
    bad(GENERATE, "huge id", {"prompt": [2**63]}, "prompt.0", "less than or equal to"),
    bad(GENERATE, "boolean id", {"prompt": [True]}, "prompt.0", "valid integer"),
    bad(COMPLETIONS, "stop_token_ids", {"stop_token_ids": [257]}, "stop_token_ids", VOCABULARY),
    bad(COMPLETIONS, "negative stop token", {"stop_token_ids": [-1]}, "stop_token_ids", "token id -1"),
    bad(COMPLETIONS, "many stop tokens", {"stop_token_ids": [1] * 1025}, "stop_token_ids", "at most 1024 items"),
    bad(CHAT, "allowed_token_ids", {"allowed_token_ids": [0, 257]}, "allowed_token_ids", VOCABULARY),
    bad(CHAT, "none allowed", {"allowed_token_ids": []}, "allowed_token_ids", "at least 1 item"),
    bad(CHAT, "all banned", {"allowed_token_ids": [64], "bad_words": ["a"]}, "allowed_token_ids", "leaves no token"),
    bad(CHAT, "logit_bias", {"logit_bias": {"257": 1}}, "logit_bias", VOCABULARY),
    bad(CHAT, "logit_bias by name", {"logit_bias": {"a": 1}}, "logit_bias.a", "pattern"),
    bad(CHAT, "negative logit_bias", {"logit_bias": {"-1": 1}}, "logit_bias", "pattern"),
    bad(CHAT, "large logit_bias", {"logit_bias": {"1": 101}}, "logit_bias", "less than or equal to 100"),
    bad(CHAT, "many biases", {"logit_bias": {str(n): 1 for n in range(1025)}}, "logit_bias", "at most 1024 items"),
    bad(DETOKENIZE, "tokens", {"tokens": [257]}, "tokens", "token id 257 is out of range"),
    bad(DETOKENIZE, "negative tokens", {"tokens": [-5]}, "tokens", "token id -5 is out of range"),
    bad(DETOKENIZE, "no tokens", {}, "tokens", "tokens is missing"),
    bad(TOKENIZE, "nothing", {}, "prompt", "give one of them"),
    bad(TOKENIZE, "two sources", {"prompt": "a", "messages": [USER]}, "prompt", "give one of them"),
    bad(TOKENIZE, "tools of a prompt", {"prompt": "a", "tools": [function()]}, "tools", "tools needs messages"),
    bad(TOKENIZE, "129 tools", {"messages": [USER], "tools": [function()] * 129}, "tools", "at most 128 items"),
    bad(TOKENIZE, "no role", {"messages": [{"content": "a"}]}, "messages.0.role", "discriminator"),
    bad(TOKENIZE, "another model", {"prompt": "a", "model": "gpt"}, "model", "not served here", 404),
]
FORMS = [
    bad(GENERATE, "two guides", {"guided_json": {}, "guided_regex": "a"}, "guided_json", "cannot be given together"),
    bad(GENERATE, "no guide", {"structured_outputs": {}}, "structured_outputs", "give one of regex, choice"),
    bad(GENERATE, "5,000 properties", {"guided_json": BIG_OBJECT}, "guided_json", "allowed are 1,000"),
    bad(CHAT, "5,000 properties", json_schema(BIG_OBJECT), "response_format", "allowed are 1,000"),
    bad(CHAT, "schema 40 deep", json_schema(nested_schema(20)), "response_format", "more than 32 deep"),
    bad(GENERATE, "JSON 65 deep", {"guided_json": nested(65)}, "guided_json", "deeper than 64 levels"),
    bad(GENERATE, "remote $ref", {"guided_json": {"$ref": "http://x.y/z"}}, "guided_json", "http://x.y/z"),
    bad(GENERATE, "$ref to a file", {"guided_json": {"$ref": "file:///etc/passwd"}}, "guided_json", "within it"),
    bad(CHAT, "remote $ref", json_schema({"$ref": "https://x.y"}), "response_format", "https://x.y"),
    bad(GENERATE, "$ref to nowhere", {"guided_json": {"$ref": "#/$defs/x"}}, "guided_json", "does not have"),
    bad(GENERATE, "impossible schema", {"guided_json": {"type": "nonsense"}}, "guided_json", "one of object,"),
    bad(GENERATE, "contradiction", {"guided_json": {"enum": []}}, "guided_json", "nothing can match"),
    bad(GENERATE, "unclosed regex", {"guided_regex": "(a"}, "guided_regex", "regex cannot be compiled"),
    bad(GENERATE, "looking ahead", {"guided_regex": "(?=a)a"}, "guided_regex", "look-around"),
    bad(GENERATE, "long regex", {"guided_regex": "a" * 5000}, "guided_regex", "allowed are 4,096"),
    bad(GENERATE, "no grammar", {"guided_grammar": "start: ("}, "guided_grammar", "grammar cannot be compiled"),
    bad(GENERATE, "no start", {"guided_grammar": 'x: "a"'}, "guided_grammar", "grammar cannot be compiled"),
    bad(GENERATE, "unknown rule", {"guided_grammar": "start: x"}, "guided_grammar", "grammar cannot be compiled"),
    bad(GENERATE, "long grammar", {"guided_grammar": "x" * 70_000}, "guided_grammar", "allowed are 65,536"),
    bad(GENERATE, "no choice", {"guided_choice": []}, "guided_choice", "0 choices were given"),
    bad(GENERATE, "empty choice", {"guided_choice": ["a", ""]}, "guided_choice", "choice 1 is empty"),
    bad(GENERATE, "many choices", {"guided_choice": ["a"] * 1001}, "guided_choice", "1,001 choices were given"),
    bad(GENERATE, "inner name", {"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "regex cannot"),
    bad(GENERATE, "unknown form", {"structured_outputs": {"xml": 1}}, "structured_outputs.xml", "not a field"),
    bad(GENERATE, "speculation", {"speculation": True, "guided_regex": "a"}, "speculation", "cannot be given together"),
    bad(GENERATE, "a number of 65 bits", {"guided_json": {"maximum": 2**64}}, "guided_json", "64 bits"),
    bad(GENERATE, "a huge bound", {"guided_json": {"type": "number", "minimum": 10**400}}, "guided_json", "64 bits"),
    bad(GENERATE, "progress without a stream", {"return_progress": True}, "return_progress", "stream: true"),
    bad(
        RESPONSES,
        "a number of 65 bits in a format",
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"maximum": 10**30}}}},
        "text.format.schema",
        "64 bits",
    ),
    bad(GENERATE, "half a pair", {"guided_json": {"const": "\ud800"}}, "guided_json", "lone surrogate"),
    bad(GENERATE, "half a pair as name", {"guided_json": {"\udfff": 1}}, "guided_json", "lone surrogate"),
    bad(GENERATE, "half a pair in a choice", {"guided_choice": ["\ud800"]}, "guided_choice.0", "lone surrogate"),
    bad(CHAT, "unknown format", {"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
    bad(CHAT, "format without type", {"response_format": {}}, "response_format.type", "discriminator"),
    bad(CHAT, "no schema", {"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
    bad(CHAT, "schema is a list", json_schema([]), "response_format.json_schema.schema", "dictionary"),
    bad(RESPONSES, "bad schema", {"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", ""),
]
CONVERSATIONS = [
    bad(CHAT, "unknown role", messages({"role": "robot", "content": "x"}), "messages.0.role", "'system'"),
    bad(CHAT, "no role", messages({"content": "x"}), "messages.0.role", "discriminator"),
    bad(CHAT, "content null", messages({"role": "user", "content": None}), "messages.0.content", "missing"),
    bad(CHAT, "content number", messages({"role": "user", "content": 5}), "messages.0.content", "string"),
    bad(CHAT, "only nulls", {"messages": [None]}, "messages", "at least 1 item"),
    bad(CHAT, "message is text", {"messages": ["hi"]}, "messages.0", "dictionary"),
    bad(
        CHAT,
        "a call of nothing",
        messages({"role": "assistant", "tool_calls": [{}]}),
        "messages.0.tool_calls.0.function",
        "missing",
    ),
    bad(CHAT, "a sound", messages({**USER, "content": [{"type": "input_audio"}]}), "messages.0.content.0.type", "text"),
    bad(CHAT, "too many messages", {"messages": [USER] * 2049}, "messages", "at most 2048 items"),
    bad(
        CHAT,
        "a picture",
        messages({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}),
        "messages.0.content.0.type",
        "'text'",
    ),
    bad(CHAT, "both lengths", {"max_completion_tokens": 5}, "max_tokens", "not both"),
    bad(CHAT, "long content", messages({"role": "user", "content": "x" * 600}), "messages", "the prompt has 6"),
    bad(
        CHAT,
        "continue nothing",
        {**messages(USER, {"role": "assistant", "content": ""}), "continue_final_message": 1},
        "continue_final_message",
        "valid boolean",
    ),
    bad(
        CHAT,
        "continue and open",
        {"continue_final_message": True, "add_generation_prompt": True},
        "add_generation_prompt",
        "exclude each other",
    ),
    bad(
        CHAT,
        "continue an empty message",
        {**messages(USER, {"role": "assistant", "content": " "}), "continue_final_message": True},
        "messages",
        "needs a last message with text",
    ),
    bad(RESPONSES, "unknown item", {"input": [{"type": "local_shell_call"}]}, "input.0.type", "'local_shell_call'"),
    bad(RESPONSES, "nothing to answer", {"input": [{"type": "web_search_call"}]}, "input", "nothing to answer"),
    bad(RESPONSES, "silent user", {"input": [{"role": "user"}]}, "input.0.content", "content is missing"),
    bad(
        RESPONSES,
        "a reference",
        {"input": [{"type": "item_reference", "id": "x"}]},
        "input.0.type",
        "send the item itself",
    ),
    bad(RESPONSES, "item is text", {"input": ["hi"]}, "input.0", "'message'"),
    bad(
        RESPONSES,
        "a picture",
        {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        "input.0.content.0.type",
        "'input_text'",
    ),
]
TOOLS = [
    bad(CHAT, "two of one name", {"tools": [function(), function()]}, "tools", "two functions of the same name"),
    bad(CHAT, "no name", {"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name", "missing"),
    bad(CHAT, "bad name", {"tools": [function("a b")]}, "tools.0.function.name", "pattern"),
    bad(CHAT, "other type", {"tools": [{"type": "web_search"}]}, "tools.0.type", "'function'"),
    bad(CHAT, "129 tools", {"tools": [function(f"f{n}") for n in range(129)]}, "tools", "at most 128 items"),
    bad(CHAT, "parameters of text", {"tools": [function(parameters={"type": "string"})]}, "tools", 'must be "object"'),
    bad(CHAT, "half a pair", {"tools": [function(description="\ud800")]}, "tools.0.function.description", "surrogate"),
    bad(
        CHAT,
        "half a pair in parameters",
        {"tools": [function(parameters={"title": "\ud800"})]},
        "tools.0.function.parameters",
        "surrogate",
    ),
    bad(CHAT, "choice without tools", {"tool_choice": "required"}, "tool_choice", "tool_choice needs tools"),
    bad(CHAT, "unknown word", {"tools": [function()], "tool_choice": "maybe"}, "tool_choice", "'required'"),
    bad(CHAT, "unknown choice", {"tools": [function()], "tool_choice": function("g")}, "tool_choice", "names 'g'"),
    bad(CHAT, "tools and form", {"tools": [function()], "guided_regex": "a"}, "guided_regex", "tools that may be"),
    bad(CHAT, "tools and speculation", {"tools": [function()], "speculation": True}, "speculation", "or tools"),
    bad(CHAT, "functions", {"functions": [{"name": "f"}]}, "functions", "use tools"),
    bad(CHAT, "function_call", {"function_call": {"name": "f"}}, "function_call", "use tool_choice"),
    bad(
        CHAT,
        "allowed tools",
        {"tools": [function()], "tool_choice": {"type": "allowed_tools"}},
        "tool_choice.type",
        "send only",
    ),
    bad(RESPONSES, "nameless tool", {"tools": [{"type": "function"}]}, "tools.0.name", "missing"),
    bad(RESPONSES, "unknown choice", {"tool_choice": {"type": "function", "name": "g"}}, "tool_choice", "names 'g'"),
    bad(RESPONSES, "choice without tools", {"tool_choice": "required"}, "tool_choice", "tool_choice needs tools"),
]
BAD_INPUTS = [*BODIES, *RANGES, *TOKEN_IDS, *FORMS, *CONVERSATIONS, *TOOLS]
