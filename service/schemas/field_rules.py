"""The rule for fields that a request body does not have: accepted without effect, refused by name, or unknown.

The one place that says so; docs/api.md is generated from it. Clients, editors and agents send labels and hints with
every request and cannot turn them off: what cannot change an answer is accepted. What would change the answer and
cannot be honoured is refused with the reason. Null is absence, so it is dropped before any of this is looked at.
"""

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Body = Mapping[str, Any]


@dataclass(frozen=True)
class Accepted:
    """A field that is accepted without effect.

    why: for the documentation. values: the accepted ones in words, empty for any. allows: whether a value of a body is.
    """

    why: str
    values: str = ""
    allows: Callable[[Any, Body], bool] = lambda _value, _body: True


def only(why: str, *values: Any) -> Accepted:
    """A field accepted where it asks for what happens anyway."""
    shown = ", ".join("empty" if value in ((), [], {}, "") else _json(value) for value in values)
    return Accepted(why, shown, lambda value, _body: any(_is_same(value, wanted) for wanted in values))


def _is_same(value: Any, wanted: Any) -> bool:
    """Whether a JSON value is the wanted one; true is not 1."""
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


def _json(value: Any) -> str:
    return f"`{json.dumps(value)}`"


def _wants_no_reasoning(value: Any, _body: Body) -> bool:
    """Whether a `reasoning` object of OpenAI or OpenRouter asks for none; how it would be shown does not matter."""
    if not isinstance(value, Mapping):
        return False
    return (
        value.get("effort") in (None, "none")
        and value.get("enabled") in (None, False)
        and value.get("max_tokens") in (None, 0)
    )


def _is_disabled(value: Any, _body: Body) -> bool:
    """Whether a `thinking` object, as Anthropic's, DeepSeek's and Z.ai's clients send it, switches thinking off."""
    return isinstance(value, Mapping) and value.get("type") == "disabled"


def _thinks_not(value: Any, _body: Body) -> bool:
    """Whether variables for the template only switch thinking off, as Qwen's and DeepSeek's clients do."""
    return isinstance(value, Mapping) and set(value) <= {"enable_thinking", "thinking"} and not any(value.values())


def _as_the_route_does(value: Any, body: Body) -> bool:
    """Whether special tokens are wanted where they are added: to plain prompts, not to what a template wrote."""
    return isinstance(value, bool) and value is not ("messages" in body or "input" in body)


def _is_below_one(value: Any, _body: Body) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and value < 1


def _has_no_repetition_penalty(_value: Any, body: Body) -> bool:
    return body.get("repetition_penalty") in (None, 1)


NO_REASONING = "the served model does not reason apart from its answer"
SAMPLER_IS_OFF = "belongs to a sampler that is off"
NOT_A_SAMPLER = "this service does not have that sampler"
LENGTHS = "the most tokens of an answer are max_output_tokens on /v1/responses and max_tokens elsewhere"
ONE_PROVIDER = "one model is served here, by nobody else"
LABEL = "a label"
EXTRA_OUTPUT = "asks for nothing more in the answer"

ACCEPTED: dict[str, Accepted] = {
    # labels
    "anthropic_beta": Accepted(LABEL),
    "anthropic_version": Accepted(LABEL),
    "betas": Accepted(LABEL),
    "caching": Accepted("a setting of LiteLLM's own cache"),
    "chat_id": Accepted(LABEL),
    "client_metadata": Accepted(LABEL),
    "debug": Accepted(LABEL),
    "fallbacks": Accepted(ONE_PROVIDER),
    "litellm_call_id": Accepted(LABEL),
    "litellm_metadata": Accepted(LABEL),
    "litellm_session_id": Accepted(LABEL),
    "litellm_trace_id": Accepted(LABEL),
    "message_id": Accepted(LABEL),
    "num_retries": Accepted("clients and proxies try again"),
    "metadata": Accepted("a label; /v1/responses returns it"),
    "request_id": Accepted("a label; send x-request-id to name a request"),
    "safety_identifier": Accepted(LABEL),
    "session_id": Accepted(LABEL),
    "tags": Accepted(LABEL),
    "thread_id": Accepted(LABEL),
    "trace": Accepted(LABEL),
    "trace_id": Accepted(LABEL),
    "user": Accepted(LABEL),
    # hints about caches, memory, routes and speed
    "cache_control": Accepted("equal prompts are found by their tokens"),
    "cache_prompt": Accepted("computed prompts are reused, and change no answer"),
    "id_slot": Accepted("any row gives the same answer"),
    "keep_alive": Accepted("the model stays loaded"),
    "models": Accepted(ONE_PROVIDER),
    "n_discard": Accepted("a context is never shifted"),
    "n_keep": Accepted("a context is never shifted"),
    "prediction": Accepted("a hint for speed; speculation: true needs no text"),
    "prompt_cache_key": Accepted("equal prompts are found by their tokens; cache_salt keeps them apart"),
    "prompt_cache_options": Accepted("equal prompts are found by their tokens"),
    "prompt_cache_retention": Accepted("computed prompts are kept while there is room"),
    "provider": Accepted(ONE_PROVIDER),
    "route": Accepted(ONE_PROVIDER),
    "service_tier": only("there is one tier", "auto", "default"),
    "slot_id": Accepted("any row gives the same answer"),
    "sse_ping_interval": Accepted("a silent stream is kept open anyway"),
    "stream_options": Accepted("this route ends with the token counts anyway"),
    # what would be said in the answer beside its text
    "include": Accepted("there is nothing more to include"),
    "include_reasoning": Accepted(NO_REASONING),
    "include_thoughts": Accepted(NO_REASONING),
    "max_tool_calls": Accepted("it counts built-in tools, of which there are none"),
    "parallel_tool_calls": Accepted("there are no tools here"),
    "reasoning_format": Accepted(NO_REASONING),
    "reasoning_split": Accepted(NO_REASONING),
    "return_progress": Accepted("/v1/generate reports progress"),
    "separate_reasoning": Accepted(NO_REASONING),
    "store": only("nothing is stored", False),
    "stream_reasoning": Accepted(NO_REASONING),
    "timings_per_token": Accepted("/v1/generate returns timings; others have them in Server-Timing"),
    "usage": Accepted("answers have token counts; streams with stream_options.include_usage"),
    # accepted where they ask for what happens anyway
    "add_special_tokens": Accepted(
        "plain prompts get the tokenizer's, chats the template's; send token ids for others",
        "`true` with a prompt, `false` in chats",
        _as_the_route_does,
    ),
    "adaptive_target": Accepted(SAMPLER_IS_OFF),
    "background": only("answers are made while you wait", False),
    "background_options": only("answers are made while you wait", {}),
    "best_of": only("/v1/completions has it", 1),
    "chat_template_kwargs": Accepted("the template takes none", "empty, or thinking switched off", _thinks_not),
    "context_management": only("contexts are not edited", [], {}),
    "detokenize": only("answers are text", True),
    "documents": only("write them into the messages", []),
    "dry_allowed_length": Accepted(SAMPLER_IS_OFF),
    "dry_base": Accepted(SAMPLER_IS_OFF),
    "dry_multiplier": only(NOT_A_SAMPLER, 0),
    "dry_penalty_last_n": Accepted(SAMPLER_IS_OFF),
    "dry_sequence_breakers": Accepted(SAMPLER_IS_OFF),
    "dynatemp_exponent": Accepted(SAMPLER_IS_OFF),
    "dynatemp_range": only(NOT_A_SAMPLER, 0),
    "echo": only("/v1/completions has it", False),
    "enable_thinking": only(NO_REASONING, False),
    "frequency_penalty": only("the other routes have it", 0),
    "function_call": only("it is deprecated; use tool_choice", "none", "auto"),
    "functions": only("it is deprecated; use tools", []),
    "grammar_lazy": only("grammars hold from the first token", False),
    "guided_decoding_backend": Accepted("there is one"),
    "grammar": only("this service calls it guided_grammar", ""),
    "image_config": Accepted("Attend serves text models"),
    "image_data": only("Attend serves text models", []),
    "kv_transfer_params": only("keys and values stay here", {}),
    "length_penalty": only("it belongs to beam search, which is not here", 1),
    "logit_bias": only("the other routes have it", {}, []),
    "logits_processors": only("code in requests is never run", []),
    "logprobs": only("the other routes have it", False),
    "lora": only("no adapters are served", []),
    "media_io_kwargs": only("Attend serves text models", {}),
    "min_keep": only(NOT_A_SAMPLER, 0),
    "mcp_servers": only("there are none", []),
    "mirostat": only(NOT_A_SAMPLER, 0),
    "mirostat_eta": Accepted(SAMPLER_IS_OFF),
    "mirostat_tau": Accepted(SAMPLER_IS_OFF),
    "mm_processor_kwargs": only("Attend serves text models", {}),
    "modalities": only("Attend serves text models", ["text"]),
    "n": only("this route gives one answer", 1),
    "n_indent": only("lines are not indented", 0),
    "n_probs": only("this service calls it logprobs", 0),
    "options": only("give its fields by themselves", {}),
    "parse_tool_calls": only("calls are always read", True),
    "plugins": only("there are none", []),
    "post_sampling_probs": only("log-probabilities are the model's own", False),
    "presence_penalty": only("the other routes have it", 0),
    "previous_response_id": only("nothing is stored; send the whole conversation as input", ""),
    "reasoning": Accepted(NO_REASONING, "without effort", _wants_no_reasoning),
    "reasoning_effort": only(NO_REASONING, "none"),
    "repeat_last_n": Accepted("a penalty looks at the whole text", "without a penalty", _has_no_repetition_penalty),
    "repeat_penalty": only("this service calls it repetition_penalty", 1),
    "response_fields": only("answers are whole", []),
    "return_prompt_text": only("POST /tokenize shows a conversation's tokens", False),
    "return_token_ids": only("/v1/generate returns token ids", False),
    "return_token_offsets": only("/v1/completions returns text_offset with logprobs", False),
    "return_tokens": only("/v1/generate returns token ids", False),
    "return_tokens_as_token_ids": only("/v1/generate returns token ids", False),
    "samplers": only("the order of sampling is fixed", []),
    "safe_prompt": only("write it into a message", False),
    "spaces_between_special_tokens": only("special tokens are decoded like the others", True),
    "stop": only("this route has stop_token_ids only", [], ""),
    "stop_sequences": only("this service calls it stop", []),
    "suffix": only("the served model cannot fill in a middle", ""),
    "system": only("send a system message", ""),
    "t_max_predict_ms": Accepted("this service calls it deadline_ms", "no limit", _is_below_one),
    "t_max_prompt_ms": Accepted("this service calls it deadline_ms", "no limit", _is_below_one),
    "tfs_z": only(NOT_A_SAMPLER, 1),
    "think": only(NO_REASONING, False),
    "thinking": Accepted(NO_REASONING, '`{"type": "disabled"}`', _is_disabled),
    "thinking_budget": only(NO_REASONING, 0),
    "thinking_token_budget": only(NO_REASONING, 0),
    "tool_choice": only("this route has no tools", "none", "auto"),
    "tools": only("this route has no tools", []),
    "top_a": only(NOT_A_SAMPLER, 0),
    "top_n_sigma": Accepted(NOT_A_SAMPLER, "off", _is_below_one),
    "top_logprobs": only("this route calls it logprobs", 0),
    "transforms": only("prompts are not edited", []),
    "truncation": only("inputs that do not fit are refused", "disabled"),
    "truncation_side": only("the last tokens are kept", "left"),
    "typ_p": only(NOT_A_SAMPLER, 1),
    "typical_p": only(NOT_A_SAMPLER, 1),
    "use_beam_search": only("use best_of on /v1/completions", False),
    "verbosity": only("use max_tokens, or ask for it in a message", "medium"),
    "vllm_xargs": only("there are no extensions", {}),
    "watermarking": only("answers carry no watermark", False),
    "xtc_probability": only(NOT_A_SAMPLER, 0),
    "xtc_threshold": Accepted(SAMPLER_IS_OFF),
}
REFUSED: dict[str, str] = {
    "audio": "Attend serves text models",
    "chat_template": "templates come from the model only",
    "conversation": "nothing is stored; send the whole conversation",
    "frequency": "did you mean frequency_penalty?",
    "input": "this route calls it prompt, or messages",
    "instructions": "send a system message",
    "json_schema": "this service calls it guided_json",
    "logprob_token_ids": "ask for more logprobs instead",
    "max_completion_tokens": LENGTHS,
    "max_output_tokens": LENGTHS,
    "max_tokens": LENGTHS,
    "max_tokens_to_sample": LENGTHS,
    "messages": "use /v1/chat/completions, or input on /v1/responses",
    "moderation": "nothing is moderated here",
    "n_predict": LENGTHS,
    "previous_input_messages": "send the whole conversation as input",
    "previous_response": "send the whole conversation as input",
    "prompt": "this route takes messages, or input",
    "random_seed": "this service calls it seed",
    "response_format": "/v1/chat/completions has it; /v1/responses calls it text.format, others have guided_json",
    "text": "/v1/responses has it",
    "web_search_options": "there is no web search; offer it as a tool",
}
HINT_PREFIXES = ("speculative.",)  # llama.cpp's settings for drafts, which change no answer
TOOL_LABELS = frozenset(
    {"_meta", "allowed_callers", "annotations", "cache_control", "copilot_cache_control", "defer_loading"}
    | {"eager_input_streaming", "examples", "execution", "icons", "id", "input_examples", "metadata", "outputSchema"}
    | {"output_schema", "response", "return", "returns", "tags", "title", "version"}
)  # members of a tool that say nothing about how it is called


def is_without_effect(name: str, value: Any, body: Body) -> bool:
    """Whether a field that the body does not have may be dropped."""
    if name.startswith(HINT_PREFIXES):
        return True
    accepted = ACCEPTED.get(name)
    return accepted is not None and accepted.allows(value, body)


def refusal_reason(name: str) -> str | None:
    """Why a field with a known meaning is refused; None for a name that nobody knows."""
    if name in REFUSED:
        return REFUSED[name]
    accepted = ACCEPTED.get(name)
    if accepted is None:
        return None
    return f"{accepted.why}; accepted only: {_without_marks(accepted.values)}"


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The known field whose name is most like an unknown one."""
    candidates = [*known, *ACCEPTED]
    matches = difflib.get_close_matches(name[:100].lower(), candidates, n=1, cutoff=0.75)
    return matches[0] if matches else None


def _without_marks(values: str) -> str:
    return values.replace("`", "")
