"""Random requests over text that is hard to stream: split characters, broken ones, special tokens, calls."""

import random
from collections.abc import Sequence

from tests.support.api_client import CHAT, COMPLETIONS, RESPONSES, Json, body_for
from tests.support.fake_decoder import END_ID, next_token
from tests.support.requests import TOKENIZER

# Emoji of one and of five code points, combining characters, Chinese, right to left, a zero width joiner, line ends.
SCRIPT_TEXT = "Ok 🙂 café e\u0301 漢字かな 👩‍👩‍👧 שלום\n\n<tool_call> a\u200db ÿ\ufffd\r\n{{x}} aaab "
BROKEN = TOKENIZER.encode("€")[:2]  # two of three bytes
SCRIPT = [*TOKENIZER.encode(SCRIPT_TEXT), *BROKEN, *TOKENIZER.encode("abc"), END_ID, *BROKEN, END_ID]
PROMPTS = ["hi", "漢字 🙂", "e\u0301", " ", "a\nb", "<|end|>", "{{ 7*7 }}", "x" * 20]
TOOL_PARAMETERS = {"type": "object", "properties": {"城": {"enum": ["🙂", "é\n"]}}, "additionalProperties": False}


def scripted_token(token_ids: Sequence[int]) -> int:
    """The text above from a place that depends on the first tokens, over and over, with a slip here and there."""
    chance = next_token(token_ids)
    if chance % 40 == 0:
        return chance
    return SCRIPT[(sum(token_ids[:12]) + len(token_ids)) % len(SCRIPT)]


def random_body(route: str, dice: random.Random) -> Json:
    """A request that the route accepts, unstreamed."""
    body = body_for(route, dice.choice(PROMPTS), max_tokens=dice.randint(1, 60))
    body |= {"temperature": dice.choice([0, 0, 0.1, 1]), "seed": dice.randint(0, 9)}
    _add(body, dice, 0.5, "ignore_eos", True)
    _add(body, dice, 0.3, "skip_special_tokens", False)
    _add(body, dice, 0.3, "include_stop_str_in_output", True)
    _add(body, dice, 0.3, "min_tokens", dice.randint(0, body.get("max_tokens", 1)))
    _add(body, dice, 0.2, "stop_token_ids", dice.sample(range(END_ID), 8))
    _add(body, dice, 0.2, "prompt_logprobs", dice.randint(0, 3))
    _add(body, dice, 0.2, "truncate_prompt_tokens", dice.randint(1, 9))
    _add(body, dice, 0.1, "speculation", True)
    if route == RESPONSES:
        _add_flat_tools(body, dice)
        return body
    _add(body, dice, 0.6, "stop", _stop_strings(dice))
    _add(body, dice, 0.3, "n", dice.randint(1, 3))
    _add(body, dice, 0.2, "frequency_penalty", 0.5)
    if route == CHAT:
        if dice.random() < 0.4:
            body |= {"logprobs": True, "top_logprobs": dice.randint(0, 3)}
        _add_chat_tools(body, dice)
        return body
    _add(body, dice, 0.4, "logprobs", dice.randint(0, 3))
    if route == COMPLETIONS:
        _add(body, dice, 0.4, "echo", True)
        _add(body, dice, 0.2, "prompt", dice.choice([["a", "漢"], [[1, 2], [3]], [*BROKEN, 64]]))
    return body


def _add(body: Json, dice: random.Random, share: float, name: str, value: object) -> None:
    if dice.random() < share:
        body[name] = value


def _stop_strings(dice: random.Random) -> str | list[str]:
    """Pieces of the text, most of which end within it; or one alone."""
    starts = [dice.randrange(len(SCRIPT_TEXT) - 4) for _ in range(dice.randint(1, 3))]
    pieces = [SCRIPT_TEXT[start : start + dice.randint(1, 4)] for start in starts]
    return pieces if dice.random() < 0.7 else pieces[0]


def _add_chat_tools(body: Json, dice: random.Random) -> None:
    if dice.random() < 0.3:
        body.pop("speculation", None)
        body["tools"] = [{"type": "function", "function": {"name": "look", "parameters": TOOL_PARAMETERS}}]
        body |= {"tool_choice": dice.choice(["auto", "required"]), "max_tokens": dice.choice([30, 75])}


def _add_flat_tools(body: Json, dice: random.Random) -> None:
    if dice.random() < 0.3:
        body.pop("speculation", None)
        body["tools"] = [{"type": "function", "name": "look", "parameters": TOOL_PARAMETERS}]
        body |= {"tool_choice": dice.choice(["auto", "required"]), "max_output_tokens": dice.choice([30, 75])}
