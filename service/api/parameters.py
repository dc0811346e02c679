"""From a request's fields to what the engine takes: sampling parameters, stop conditions, the answer's constraint.

Separate from the routes because all of them name these fields alike.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from model.config import ModelConfig
from model.constraint import ConstraintError, ConstraintSpec, SchemaRules
from model.sampling import SamplingParams
from model.tokenizer import Tokenizer
from service.engine.request import StopConditions
from service.engine.request_check import InvalidRequestError
from service.schemas.generation import GenerationFields


@dataclass(frozen=True)
class Choosing:
    """How a route's answers are chosen, where that is not a field of its own.

    num_choices: answers for each prompt. logprobs: alternatives to report, None reports nothing. constraint: the
    answer's form, and form_field the field that asked for it, for errors.
    """

    num_choices: int = 1
    max_tokens: int | None = None
    logprobs: int | None = None
    constraint: ConstraintSpec | None = None
    form_field: str | None = None


def sampling_params(
    fields: GenerationFields, config: ModelConfig, tokenizer: Tokenizer, logprobs: int | None, seed: int
) -> SamplingParams:
    """The fields that choose tokens.

    Raises:
        InvalidSamplingError: they contradict each other.
    """
    banned = [_token_sequences(word, tokenizer) for word in fields.bad_words or ()]
    sequences = {sequence for of_word in banned for sequence in of_word}
    allowed = fields.allowed_token_ids
    return SamplingParams(
        temperature=fields.temperature,
        top_p=fields.top_p,
        seed=seed,
        top_k=max(fields.top_k, 0),
        min_p=fields.min_p,
        repetition_penalty=fields.repetition_penalty,
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        logit_bias={int(token_id): bias for token_id, bias in (fields.logit_bias or {}).items()},
        allowed_token_ids=None if allowed is None else tuple(allowed),
        banned_token_ids=tuple(sorted(ids[0] for ids in sequences if len(ids) == 1)),
        banned_sequences=tuple(sorted(ids for ids in sequences if len(ids) > 1)),
        min_tokens=fields.min_tokens,
        end_token_ids=tuple(_end_token_ids(fields, config)),
        logprobs=logprobs,
    )


def stop_conditions(fields: GenerationFields, config: ModelConfig, max_tokens: int) -> StopConditions:
    """The fields that end an answer."""
    return StopConditions(
        max_tokens,
        fields.stop_strings,
        frozenset(fields.stop_token_ids or ()),
        frozenset() if fields.ignore_eos else frozenset(config.eos_token_ids),
        is_included=fields.include_stop_str_in_output,
    )


def guide_form(fields: GenerationFields, *, opens_objects: bool = False) -> ConstraintSpec | None:
    """The constraint that `guided_…` or `structured_outputs` asks for.

    Raises:
        ConstraintError: it is too large, or says what cannot be enforced.
    """
    if fields.guide is None:
        return None
    kind, value = fields.guide
    makers: dict[str, Callable[..., ConstraintSpec]] = {
        "regex": ConstraintSpec.regex,
        "choice": ConstraintSpec.choice,
        "json": lambda schema: ConstraintSpec.json_schema(schema, SchemaRules(opens_objects)),
        "grammar": ConstraintSpec.grammar,
    }
    return makers[kind](value)


@contextlib.contextmanager
def blaming_form(field: str | None) -> Iterator[None]:
    """Name the field whose constraint cannot be made."""
    try:
        yield
    except ConstraintError as error:
        raise InvalidRequestError(str(error), field, "invalid_constraint") from error


def choice_seed(seed: int, choice: int) -> int:
    """The seed of one of several answers; the first one's is the request's own. Wraps around in 64 bits."""
    return (seed + choice + 2**63) % 2**64 - 2**63


def _end_token_ids(fields: GenerationFields, config: ModelConfig) -> Sequence[int]:
    own = () if fields.ignore_eos else config.eos_token_ids
    return sorted({*own, *(fields.stop_token_ids or ())})


def _token_sequences(word: str, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """How a word is spelled in tokens, at the start of a text and behind a space."""
    spellings = [tokenizer.encode(text, add_special_tokens=False) for text in (word, " " + word.lstrip(" "))]
    return [tuple(ids) for ids in spellings if ids]
