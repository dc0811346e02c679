"""Batch invariance on the real model: an answer does not depend on what else happens in the engine."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from model.bundle import Bundle
from model.decoder import Decoder
from model.kv_cache import KVCache
from model.sampler import TokenLogprobs
from model.sampling import SamplingParams
from model.tokenizer import Tokenizer
from service.bench.quality import default_text
from service.engine.engine import Engine
from service.engine.invariants import violations
from service.engine.request import FinishReason, Request, SharedPrompt, StopConditions
from service.engine.scheduler import Scheduler
from service.engine.speculation import PromptLookup
from tests.support.requests import TOKENIZER

NUM_ROWS = 8
CONTEXT_TOKENS = 1600
ANSWER_TOKENS = 16

pytestmark = [pytest.mark.model, pytest.mark.alone]


@dataclass
class Case:
    """A request to be made again and again, alone and in company."""

    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    speculates: bool = False
    prompt_logprobs: int | None = None


def make_cases(bundle: Bundle, count: int, longest: int) -> list[Case]:
    """Real text, random tokens and shared beginnings; greedy, seeded, and with everything that edits logits."""
    random = np.random.default_rng(7)
    text = Tokenizer(bundle.tokenizer_json).encode(default_text()[:60_000])
    lengths = np.exp(random.uniform(np.log(5), np.log(longest), count)).astype(int)
    cases = []
    for index, length in enumerate(lengths):
        start = 0 if index % 4 == 0 else int(random.integers(0, len(text) - length))
        prompt = text[start : start + length]
        if index % 4 == 3:
            prompt = random.integers(17, bundle.config.vocab_size, length).tolist()
        sampling = [
            SamplingParams(temperature=0.0),
            SamplingParams(temperature=0.9, top_p=0.95, seed=index),
            SamplingParams(temperature=1.5, seed=index, min_p=0.001, frequency_penalty=0.5, logit_bias={5: 1.0}),
            SamplingParams(temperature=0.0, repetition_penalty=1.3),
        ][(index // 4) % 4]
        if index % 8 == 5:  # text that repeats itself, so that there is something to look up
            prompt = (prompt[: length // 3 + 1] * 3)[:length]
        logprobs = 1 if index % 16 == 2 and length < 600 else None
        cases.append(Case(tuple(prompt), sampling, speculates=index % 4 == 1, prompt_logprobs=logprobs))
    return cases


def make_engine(bundle: Bundle, num_rows: int, chunk_tokens: int, **options: int) -> Engine:
    """An engine over the real decoder."""
    decoder = Decoder(bundle, KVCache(bundle.config, num_rows, CONTEXT_TOKENS))
    return Engine(decoder, Scheduler(chunk_tokens, reserve_tokens=0), **options)  # type: ignore[arg-type]  # the clock is not among them


def make_request(case: Case, name: str, **fields: Any) -> Request:
    """A case as a fresh request. Only its ids are looked at, so any detokenizer will do."""
    return Request(
        name,
        case.prompt_ids,
        case.sampling,
        StopConditions(ANSWER_TOKENS),
        TOKENIZER.incremental(),
        prompt_logprobs=case.prompt_logprobs,
        speculation=PromptLookup() if case.speculates else None,
        **fields,
    )


def answer_of(request: Request) -> tuple[list[int], list[TokenLogprobs]]:
    """What must not depend on company: the tokens, and what was reported of the prompt."""
    return list(request.generated_ids), list(request.prompt_token_logprobs)


def answers_alone(bundle: Bundle, cases: list[Case]) -> list[tuple[list[int], list[TokenLogprobs]]]:
    """Each case by itself: one row, its prompt in one piece where it fits, nothing shared."""
    engine = make_engine(bundle, 1, CONTEXT_TOKENS)
    answers = []
    for index, case in enumerate(cases):
        request = make_request(case, f"alone-{index}")
        engine.add(request)
        while not request.is_finished:
            engine.step()
        answers.append(answer_of(request))
    return answers


def answers_in_company(
    bundle: Bundle, cases: list[Case], chunk_tokens: int
) -> tuple[list[tuple[list[int], list[TokenLogprobs]]], dict[str, int]]:
    """All cases arriving at random among requests that are cancelled, with little memory and shared prefixes."""
    random = np.random.default_rng(chunk_tokens)
    budget_tokens = CONTEXT_TOKENS + 64
    engine = make_engine(bundle, NUM_ROWS, chunk_tokens, kv_budget_tokens=budget_tokens, prefix_cache_bytes=100 << 20)
    requests = [make_request(case, f"r{i}", priority=int(random.integers(-1, 2))) for i, case in enumerate(cases)]
    drafted = 0
    noise: list[Request] = []
    arriving = [requests[i] for i in random.permutation(len(requests))]
    while arriving or engine.has_work:
        for _ in range(int(random.integers(0, 3))):
            if arriving:
                engine.add(arriving.pop())
        if random.random() < 0.15 and arriving:
            shared = SharedPrompt()
            case = cases[int(random.integers(len(cases)))]
            for _ in range(2):
                noise.append(make_request(case, f"noise-{len(noise)}", shared_prompt=shared))
                engine.add(noise[-1])
        if noise and random.random() < 0.3:
            engine.abort(noise[-1])
        drafted += engine.step().num_drafted_tokens
        assert violations(engine, engine._kv_cache) == []
    survivors = [request for request in noise if request.finish_reason is FinishReason.LENGTH]
    by_case = {case.prompt_ids: request for case, request in zip(cases, requests, strict=True)}
    assert all(answer_of(one) == answer_of(by_case[one.prompt_ids]) for one in survivors)
    counts = {
        "drafted tokens": drafted,
        "answers from a shared prompt": len(survivors),
        "preemptions": sum(request.num_preemptions for request in [*requests, *noise]),
        "cached tokens": sum(request.num_cached_tokens for request in requests),
        "cancelled": sum(request.finish_reason is FinishReason.CANCELLED for request in noise),
    }
    return [answer_of(request) for request in requests], counts


@pytest.mark.timeout(900)  # 64 prompts twice: minutes on a slow machine
@pytest.mark.parametrize(
    ("precision", "num_prompts", "longest", "chunk_tokens"),
    [("default", 64, 1500, 97), ("fp32", 16, 400, 256), ("int8", 8, 400, 97)],
)
def test_answers_are_the_same_alone_and_under_random_load(
    request: pytest.FixtureRequest, precision: str, num_prompts: int, longest: int, chunk_tokens: int
) -> None:
    """Token for token, under arrival, cancellation, preemption, chunks of another size and prefix hits."""
    bundle: Bundle = request.getfixturevalue(f"{precision}_bundle")
    cases = make_cases(bundle, num_prompts, longest)
    company, counts = answers_in_company(bundle, cases, chunk_tokens)
    assert company == answers_alone(bundle, cases)
    if precision == "default":
        assert min(counts.values()) > 0, counts
