"""The default model as served against transformers on the same weights: logits, greedy answers, and what int8 costs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.bundle import Bundle
from model.chat import ChatTemplate
from model.decoder import Decoder
from model.tokenizer import Tokenizer
from service.bench.quality import Score, default_text, score_bundle
from tests.support.decoding import Ids, continue_greedily, new_decoder
from tests.support.reference import default_checkpoint, hugging_face_config, hugging_face_llama

pytestmark = [pytest.mark.model, pytest.mark.alone]

NUM_TOKENS = 64
CHAT_PROMPTS = (
    "Name the capital of France.",
    "Explain in two sentences why the sky is blue.",
    "Zähle von 1 bis 5 🐑🐑 und dann rückwärts, bitte: 5, 4, …",
)
PLAIN_PROMPTS = (
    "Once upon a time, in a village by the sea, there lived",
    "def fibonacci(n: int) -> int:\n    if n < 2:\n        return",
)
PROMPTS = (*CHAT_PROMPTS, *PLAIN_PROMPTS)


def prompt_ids(bundle: Bundle, prompt: str) -> Ids:
    """A prompt's token ids: through the chat template, or as it is for a plain one."""
    text = prompt
    if prompt in CHAT_PROMPTS:
        template = ChatTemplate(str(bundle.chat_template), bundle.manifest.special_tokens)
        text = template.render([{"role": "user", "content": prompt}])
    return np.array(Tokenizer(bundle.tokenizer_json).encode(text), np.int64)


@pytest.fixture(scope="module")
def hugging_face(cache_dir: Path) -> Any:
    """LlamaForCausalLM of transformers with the default model's weights."""
    checkpoint = default_checkpoint(cache_dir)
    return hugging_face_llama(hugging_face_config(checkpoint), checkpoint.tensors)


@pytest.fixture(scope="module")
def decoder(fp32_bundle: Bundle) -> Decoder:
    """The fp32 bundle, one row."""
    return new_decoder(fp32_bundle)


@pytest.mark.parametrize("prompt", PROMPTS, ids=("question", "explanation", "digits and emoji", "story", "code"))
def test_fp32_logits_equal_those_of_transformers(
    fp32_bundle: Bundle, decoder: Decoder, hugging_face: Any, prompt: str
) -> None:
    """At every position of the prompt, within 1e-3."""
    import torch

    token_ids = prompt_ids(fp32_bundle, prompt)
    with torch.no_grad():
        expected = hugging_face(torch.tensor(token_ids)[None]).logits[0].numpy()
    found = decoder.prefill(0, token_ids, 0, np.arange(len(token_ids)))
    np.testing.assert_allclose(found, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "prompt", [CHAT_PROMPTS[0], CHAT_PROMPTS[2], PLAIN_PROMPTS[1]], ids=("question", "emoji", "code")
)
def test_fp32_greedy_answer_equals_that_of_transformers(
    fp32_bundle: Bundle, decoder: Decoder, hugging_face: Any, prompt: str
) -> None:
    """Token by token over 64 tokens, end tokens counted like others."""
    import torch

    token_ids = prompt_ids(fp32_bundle, prompt)
    asked = torch.tensor(token_ids)[None]
    answer = hugging_face.generate(
        asked,
        attention_mask=torch.ones_like(asked),
        do_sample=False,
        max_new_tokens=NUM_TOKENS,
        eos_token_id=None,
        pad_token_id=0,
    )
    expected = answer[0, len(token_ids) :].tolist()
    chosen, _ = continue_greedily(decoder, token_ids, NUM_TOKENS)
    assert chosen == expected


@pytest.mark.parametrize("precision", ["fp32", "default", "int8", "int4"])
def test_default_model_knows_the_capital_of_france(request: pytest.FixtureRequest, precision: str) -> None:
    """A question in the chat template is answered with sense, and the answer ends by itself."""
    bundle: Bundle = request.getfixturevalue(f"{precision}_bundle")
    chosen, _ = continue_greedily(new_decoder(bundle), prompt_ids(bundle, CHAT_PROMPTS[0]), 32)
    assert bundle.config.eos_token_ids[0] in chosen
    answer = chosen[: chosen.index(bundle.config.eos_token_ids[0])]
    assert "Paris" in Tokenizer(bundle.tokenizer_json).decode(answer)


@pytest.fixture(scope="module")
def exact(fp32_bundle: Bundle) -> Score:
    """fp32 on 6,132 tokens of English prose, as `attend bench quality` measures it."""
    return score_bundle(fp32_bundle.path, default_text(), 6_144)


@pytest.mark.parametrize(
    ("precision", "max_tokens", "most"), [("default", 6_144, 0.01), ("int8", 3_072, 0.015), ("int4", 3_072, 0.006)]
)
def test_perplexity_stays_near_that_of_fp32(
    request: pytest.FixtureRequest, exact: Score, precision: str, max_tokens: int, most: float
) -> None:
    """The default within one percent; int4 only loses what 8-bit activations do, since its weights are the source's.

    The others are scored on half of the text: their products are slow in long chunks.
    """
    rounded = score_bundle(request.getfixturevalue(f"{precision}_bundle").path, default_text(), max_tokens)
    num_scored = len(rounded.choices)
    assert num_scored > 0.99 * max_tokens
    same = replace(exact, log_likelihoods=exact.log_likelihoods[:num_scored], choices=exact.choices[:num_scored])
    assert abs(rounded.perplexity / same.perplexity - 1) < most
    assert rounded.agreement(same) > 0.93
