"""Requests that must be answered as if what is odd about them were not there. Data, apart from their test.

Each row is a kind of complaint that clients' users have made of servers, and why a server should be kind there.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from tests.support.api_client import CHAT, COMPLETIONS, GENERATE, RESPONSES, Json


@dataclass(frozen=True)
class KindRow:
    """kind, variant: for the test's name. why: one line. fields: beside a plain body. plain: what they come to."""

    kind: str
    variant: str
    why: str
    route: str
    fields: Json
    plain: Json = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.kind}: {self.variant} ({self.route})"


def rows(kind: str, why: str, routes: tuple[str, ...], *variants: Json, plain: Json | None = None) -> list[KindRow]:
    """A row for each variant on each route."""
    return [
        KindRow(kind, f"{number} {_name(fields)}", why, route, fields, plain or {})
        for route in routes
        for number, fields in enumerate(variants, 1)
    ]


def _name(fields: Json) -> str:
    return json.dumps(fields)[:60]


def chat(*history: Json) -> Json:
    """The messages of a chat."""
    return {"messages": list(history)}


ALL = (COMPLETIONS, CHAT, GENERATE, RESPONSES)
USER: Json = {"role": "user", "content": "hi"}
ANSWER: Json = {"role": "assistant", "content": "Hello."}
CALL: Json = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x": "a"}'}}
CALLING: Json = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT: Json = {"role": "tool", "tool_call_id": "call_1", "content": "21"}
CALL_ITEM: Json = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": '{"x": "a"}'}
RESULT_ITEM: Json = {"type": "function_call_output", "call_id": "call_1", "output": "21"}
SAID_ITEM: Json = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello."}]}

NULLS = rows(
    "null is absence",
    "SDKs and agents dump whole objects, fields that were never set included.",
    ALL,
    {"reasoning_effort": None},
    {"reasoning": None},
    {"no_such_field": None, "x-another": None},
    {"suffix": None, "web_search_options": None, "functions": None, "function_call": None},
    {"stop": None, "tools": None, "tool_choice": None, "logit_bias": None, "seed": None, "n": None},
    {"stream_options": None, "stream": None, "user": None, "metadata": None},
)
LABELS = rows(
    "labels and hints",
    "Clients send them with every request and cannot turn them off; they change no answer.",
    ALL,
    {"prompt_cache_key": "conversation-7"},
    {"prompt_cache_retention": "24h"},
    {"metadata": {"run": "7"}},
    {"user": "Ada", "safety_identifier": "ada-1"},
    {"store": False},
    {"service_tier": "auto"},
    {"service_tier": "default"},
    {"include": []},
    {"include": ["reasoning.encrypted_content"]},
    {"parallel_tool_calls": True},
    {"parallel_tool_calls": False},
    {"stream_options": {"include_usage": True}},
    {"session_id": "s", "request_id": "r", "trace": {"id": "t"}, "tags": ["a"]},
    {"provider": {"order": ["x"]}, "route": "fallback", "models": ["fake"], "transforms": []},
    {"cache_control": {"type": "ephemeral"}},
    {"prediction": {"type": "content", "content": "Hello"}},
    {"cache_prompt": True, "id_slot": -1, "n_keep": 4, "timings_per_token": True},
    {"speculative.n_max": 16, "speculative.p_min": 0.5},
    {"litellm_metadata": {"a": 1}, "litellm_call_id": "x"},
    {"keep_alive": "5m"},
)
NEUTRAL = rows(
    "asking for what happens anyway",
    "Settings pages of clients send every sampler they know, most of them switched off.",
    ALL,
    {"use_beam_search": False, "length_penalty": 1.0, "detokenize": True, "spaces_between_special_tokens": True},
    {"mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1, "typical_p": 1.0, "tfs_z": 1},
    {
        "dry_multiplier": 0.0,
        "dry_base": 1.75,
        "dry_sequence_breakers": ["\n"],
        "xtc_probability": 0,
        "xtc_threshold": 0.1,
    },
    {"dynatemp_range": 0.0, "dynatemp_exponent": 1, "min_keep": 0, "n_probs": 0, "repeat_penalty": 1.0},
    {"repeat_last_n": 64},
    {"return_token_ids": False, "return_tokens_as_token_ids": False, "logits_processors": []},
    {"reasoning": {"effort": "none"}, "reasoning_effort": "none", "enable_thinking": False},
    {"reasoning": {"summary": "auto"}},
    {"thinking": {"type": "disabled"}},
    {"verbosity": "medium"},
    {"suffix": "", "image_data": [], "lora": [], "grammar": "", "samplers": None},
    {"documents": [], "chat_template_kwargs": {}, "mm_processor_kwargs": {}, "truncation_side": "left"},
    {"best_of": 1, "n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}},
)
NO_TOOLS = rows(
    "no tools",
    "Frameworks send the list of tools that an agent has, which may be empty.",
    (CHAT, RESPONSES),
    {"tools": []},
    {"tools": [], "tool_choice": "none"},
    {"tools": [], "tool_choice": "auto"},
    {"tool_choice": "auto"},
    {"tools": [], "tool_choice": None, "parallel_tool_calls": False},
)
NUMBERS = [
    *rows(
        "8.0 is an integer",
        "JavaScript has one kind of number, and some encoders write its fraction.",
        (COMPLETIONS, CHAT, GENERATE),
        {"max_tokens": 8.0},
        {"n": 1.0, "top_k": 0.0, "min_tokens": 0.0},
        {"stop_token_ids": [7.0], "seed": 5.0, "priority": 0.0},
        {"truncate_prompt_tokens": 100.0, "deadline_ms": 60000.0},
        {"allowed_token_ids": None, "top_k": -1.0},
    ),
    *rows("8.0 is an integer in responses", "The same in the Responses API.", (RESPONSES,), {"max_output_tokens": 8.0}),
]
HISTORY = [
    *rows(
        "members of messages",
        "Frameworks send whatever their message objects hold, names most of all.",
        (CHAT,),
        chat({**USER, "name": "Ada"}),
        chat({**USER, "name": None}),
        chat({**USER, "id": "m1", "timestamp": 1.5, "metadata": {}}),
        chat({**USER, "cache_control": {"type": "ephemeral"}, "phase": "final"}),
        chat({"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]}),
        chat(
            {
                "role": "user",
                "content": [{"type": "text", "text": "h", "annotations": None}, {"type": "text", "text": "i"}],
            }
        ),
        chat({"role": "user", "content": ["h", "i"]}),
        chat({"role": "user", "content": [{"type": "input_text", "text": "hi"}]}),
        plain=chat(USER),
    ),
    *rows(
        "our own answers sent back",
        "A second turn holds the first answer as the SDK dumped it, with or without nulls.",
        (CHAT,),
        chat(USER, {**ANSWER, "refusal": None, "annotations": None, "audio": None, "function_call": None}, USER),
        chat(USER, {**ANSWER, "tool_calls": None, "parsed": None}, USER),
        chat(USER, {**ANSWER, "tool_calls": [], "annotations": []}, USER),
        chat(USER, {**ANSWER, "name": "assistant", "reasoning_content": "I think", "reasoning": "so"}, USER),
        chat(USER, {**ANSWER, "annotations": [{"type": "url_citation"}], "audio": {"id": "a"}, "index": 0}, USER),
        chat(
            USER,
            {**ANSWER, "content": [{"type": "text", "text": "Hello."}, {"type": "thinking", "thinking": "x"}]},
            USER,
        ),
        chat(USER, {**ANSWER, "content": [{"type": "output_text", "text": "Hello.", "logprobs": []}]}, USER),
        chat(USER, {"role": "assistant", "content": None, "refusal": "Hello."}, USER),
        chat(USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "Hello."}]}, USER),
        plain=chat(USER, ANSWER, USER),
    ),
    *rows(
        "our own calls sent back",
        "Deltas of a stream that were put together keep their index; frameworks parse arguments and send both.",
        (CHAT,),
        chat(USER, {**CALLING, "content": None}, RESULT),
        chat(USER, {**CALLING, "content": []}, RESULT),
        chat(USER, {"role": "assistant", "tool_calls": [{**CALL, "index": 0}]}, RESULT),
        chat(
            USER,
            {**CALLING, "tool_calls": [{**CALL, "function": {**CALL["function"], "parsed_arguments": {"x": "a"}}}]},
            RESULT,
        ),
        chat(USER, {**CALLING, "tool_calls": [{"function": {"name": "f", "arguments": {"x": "a"}}}]}, RESULT),
        chat(USER, {**CALLING, "tool_calls": [{**CALL, "extra_content": {"google": {}}, "caller": None}]}, RESULT),
        chat(USER, {"role": "assistant", "content": None, "function_call": CALL["function"]}, RESULT),
        plain=chat(USER, CALLING, RESULT),
    ),
    *rows(
        "results of tools",
        "Results come as texts, as lists of parts, under an older role's name, or as nothing.",
        (CHAT,),
        chat(USER, CALLING, {**RESULT, "name": "f"}),
        chat(USER, CALLING, {**RESULT, "content": [{"type": "text", "text": "21"}]}),
        chat(USER, CALLING, {**RESULT, "content": [{"type": "text", "text": "2"}, {"type": "text", "text": "1"}]}),
        chat(USER, CALLING, {**RESULT, "is_error": False, "artifact": None, "status": "success"}),
        chat(USER, CALLING, {"role": "function", "name": "f", "content": "21"}),
        chat(USER, CALLING, {**RESULT, "tool_call_id": None, "tool_name": "f"}),
        plain=chat(USER, CALLING, RESULT),
    ),
    *rows(
        "messages that say nothing",
        "An answer that was cut before its first word, a tool that returned nothing: a conversation must stay usable.",
        (CHAT,),
        chat(USER, {"role": "assistant", "content": None}, USER),
        chat(USER, {"role": "assistant"}, USER),
        chat(USER, {"role": "assistant", "content": []}, USER),
        chat(USER, {"role": "assistant", "content": "", "tool_calls": []}, USER),
        chat(USER, {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}]}, USER),
        plain=chat(USER, {"role": "assistant", "content": ""}, USER),
    ),
    *rows(
        "tools that return nothing",
        "None is what most functions return.",
        (CHAT,),
        chat(USER, CALLING, {**RESULT, "content": None}),
        chat(USER, CALLING, {**RESULT, "content": []}),
        chat(USER, CALLING, {"role": "tool", "tool_call_id": "call_1"}),
        plain=chat(USER, CALLING, {**RESULT, "content": ""}),
    ),
]
ITEMS = [
    *rows(
        "items sent back",
        "Agents send the output of a response as the next input, whatever is in it.",
        (RESPONSES,),
        {"input": [USER, {**SAID_ITEM, "id": "msg_1", "status": "completed", "phase": "final_answer"}, USER]},
        {"input": [USER, {"role": "assistant", "content": "Hello."}, USER]},
        {
            "input": [
                USER,
                {
                    **SAID_ITEM,
                    "content": [{"type": "output_text", "text": "Hello.", "annotations": [{"a": 1}], "logprobs": [{}]}],
                },
                USER,
            ]
        },
        {
            "input": [
                USER,
                {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
                SAID_ITEM,
                USER,
            ]
        },
        {"input": [USER, {**SAID_ITEM, "content": [{"type": "refusal", "refusal": "Hello."}]}, USER]},
        {"input": [USER, {**SAID_ITEM, "name": None, "recipient": None}, {**USER, "type": "message", "id": None}]},
        plain={"input": [USER, SAID_ITEM, USER]},
    ),
    *rows(
        "calls and results sent back",
        "The SDKs add members of their own to calls, and results may be lists of parts.",
        (RESPONSES,),
        {
            "input": [
                USER,
                {**CALL_ITEM, "id": "fc_1", "status": "completed", "parsed_arguments": {"x": "a"}},
                RESULT_ITEM,
            ]
        },
        {"input": [USER, {**CALL_ITEM, "caller": None, "namespace": None, "async_": None}, RESULT_ITEM]},
        {"input": [USER, {**CALL_ITEM, "arguments": {"x": "a"}}, RESULT_ITEM]},
        {"input": [USER, CALL_ITEM, {**RESULT_ITEM, "output": [{"type": "input_text", "text": "21"}]}]},
        {"input": [USER, CALL_ITEM, {**RESULT_ITEM, "id": "x", "status": None, "created_by": "y"}]},
        {
            "input": [
                USER,
                {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "x"}]},
                CALL_ITEM,
                RESULT_ITEM,
            ]
        },
        plain={"input": [USER, CALL_ITEM, RESULT_ITEM]},
    ),
]
NOTHING = [
    *rows(
        "asking for nothing",
        "Forms of clients send their empty boxes.",
        (COMPLETIONS, CHAT, GENERATE),
        {"stop": ""},
        {"stop": [""]},
        {"stop": [None, ""]},
        {"logit_bias": []},
        {"logprobs": False},
        {"functions": [], "function_call": "auto"},
        {"stop_sequences": [], "system": "", "samplers": [], "options": {}, "previous_response_id": ""},
        {"chat_template_kwargs": {"enable_thinking": False}, "think": False},
        {"t_max_predict_ms": -1, "t_max_prompt_ms": -1, "top_n_sigma": -1, "n_indent": 0, "grammar_lazy": False},
        {"num_retries": 2, "caching": True, "fallbacks": ["x"], "kv_transfer_params": {}, "mcp_servers": []},
    ),
    *rows(
        "labels of any kind",
        "Whatever a label holds, it is a label.",
        ALL,
        {"user": "x" * 1000},
        {"user": 7},
        {"user": {"id": 7, "name": "Ada"}},
        {"user": True, "safety_identifier": {"a": [1]}},
        {"safety_identifier": ["a"]},
        {"chat_id": "c", "thread_id": 7, "message_id": None, "debug": {"echo": True}},
    ),
]
FOREIGN = [
    *rows(
        "calls of other providers in the history",
        "A conversation that began elsewhere goes on here; its calls have other shapes.",
        (CHAT,),
        chat(USER, {**CALLING, "tool_calls": [{**CALL, "type": "tool_call"}, None]}, RESULT),
        chat(USER, {**CALLING, "tool_calls": [{**CALL, "type": "", "id": 7}]}, RESULT),
        chat(USER, {**CALLING, "tool_calls": [{"id": "call_1", "name": "f", "args": {"x": "a"}}]}, RESULT),
        chat(USER, {**CALLING, "function_call": {}}, RESULT),
        chat(USER, {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {"x": "a"}}]}, RESULT),
        chat(
            USER,
            {**CALLING, "content": [{"type": "tool_use", "name": "f", "input": {}}, {"type": "citations"}]},
            RESULT,
        ),
        chat(USER, {**CALLING, "content": [{"type": "thought", "text": "hm"}, None]}, RESULT),
        plain=chat(USER, CALLING, RESULT),
    ),
    *rows(
        "results that are JSON",
        "Functions return numbers, objects and lists.",
        (CHAT,),
        chat(USER, CALLING, {**RESULT, "content": 21}),
        chat(USER, CALLING, {**RESULT, "content": ["2", "1"]}),
        chat(USER, CALLING, {**RESULT, "content": [{"type": "text", "text": "21"}, None]}),
        chat(USER, CALLING, {**RESULT, "content": [None, "21"]}),
        chat(USER, CALLING, {**RESULT, "content": [{"type": "output_text", "text": "21"}, {"type": "text"}]}),
        plain=chat(USER, CALLING, RESULT),
    ),
    *rows(
        "nulls in lists",
        "Lists that were made in a loop keep a place for what was not there.",
        (CHAT,),
        {"messages": [None, USER, None]},
        chat({"role": "user", "content": [None, {"type": "text", "text": "hi"}]}),
        chat({"role": "user", "content": [{"type": None, "text": "hi"}]}),
        chat({"role": "user", "content": [{"type": "text", "text": None}, {"type": "text", "text": "hi"}]}),
        {"messages": [USER], "tools": [None], "stop": [None]},
        plain=chat(USER),
    ),
    *rows(
        "items of chats and of other providers",
        "Frameworks mix the two APIs' shapes, and keep items that say nothing to a model.",
        (RESPONSES,),
        {"input": [USER, CALLING, RESULT]},
        {"input": [USER, {**CALLING, "content": None}, RESULT_ITEM]},
        {"input": [USER, {"type": "web_search_call", "id": "ws_1", "status": "completed"}, CALL_ITEM, RESULT_ITEM]},
        {"input": [USER, {"type": "compaction", "encrypted_content": "x"}, CALL_ITEM, RESULT_ITEM]},
        {"input": [USER, {"type": "mcp_list_tools", "tools": []}, CALL_ITEM, {**RESULT_ITEM, "output": 21}]},
        {"input": [USER, CALL_ITEM, {**RESULT_ITEM, "type": "custom_tool_call_output"}]},
        plain={"input": [USER, CALL_ITEM, RESULT_ITEM]},
    ),
]
KIND_ROWS = [*NULLS, *LABELS, *NEUTRAL, *NO_TOOLS, *NUMBERS, *HISTORY, *ITEMS, *NOTHING, *FOREIGN]

FUNCTION: Json = {"name": "f", "parameters": {"type": "object", "additionalProperties": False}}
TOOL_LABELS: list[tuple[str, Any]] = [
    ("cache_control", {"type": "ephemeral"}),
    ("defer_loading", True),
    ("input_examples", [{}]),
    ("annotations", {"readOnlyHint": True}),
    ("title", "F"),
    ("output_schema", {"type": "object"}),
]
OTHER_TOOLS = ["web_search", "web_search_preview", "file_search", "code_interpreter", "mcp", "custom", "computer_use"]
