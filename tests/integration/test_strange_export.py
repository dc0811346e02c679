"""Strange checkpoints through a real export: what was decided is said once, and served answers end."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from gguf import TokenType

from model.bundle import Bundle, open_bundle
from model.bundle_writer import ExportError, ExportRequest, export_bundle
from model.checkpoint import read_checkpoint
from service.app import build_app
from service.settings import Settings
from tests.support.decoding import new_decoder, random_ids
from tests.support.reference import textbook_logits
from tests.support.tiny_checkpoint import (
    edit_tensors,
    tiny_config_json,
    tiny_tensors,
    write_chatting_checkpoint,
    write_tiny_checkpoint,
)
from tests.support.tiny_gguf import gguf_vocabulary, write_tiny_gguf

pytestmark = pytest.mark.usefixtures("traced_once")

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TEMPLATE_NOTES = (
    "note: the chat template has no form",
    "note: the model has no chat template",
    "note: no end of turn was found",
)


def export(source: Path, out: Path, **options: Any) -> tuple[Bundle, list[str]]:
    """An fp32 bundle, and the notes that were said of the checkpoint, not of what its template lacks."""
    said: list[str] = []
    bundle = export_bundle(ExportRequest(str(source), out, "fp32", **options), out.parent, said.append)
    return bundle, [line for line in said if line.startswith("note: ") and not line.startswith(TEMPLATE_NOTES)]


def chat_that_prefers(bundle: Bundle, token_id: int, cache: Path) -> Any:
    """The choice of a served chat in which one token is by far the likeliest."""
    with TestClient(build_app(Settings(bundle=bundle.path, cache_dir=cache, kv_budget_bytes=1 << 24))) as client:
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20, "logit_bias": {str(token_id): 100}}
        answer = client.post("/v1/chat/completions", json={"model": bundle.config.model_id, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def test_a_chat_ends_where_only_the_template_knows_the_end(tmp_path: Path) -> None:
    """A folder whose files call a base model's token the end; the export says that it adds the template's."""
    source = write_chatting_checkpoint(tmp_path / "m", "<|im_start|>", "<|im_end|>", chat_template=CHATML)
    bundle, notes = export(source, tmp_path / "bundle")
    assert len(notes) == 1
    assert "'<|im_end|>' (258)" in notes[0]
    choice = chat_that_prefers(bundle, 258, tmp_path)
    assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", "")


def test_a_chat_of_a_split_gguf_ends_at_its_eot(tmp_path: Path) -> None:
    """Read whole from its second part, under its own name."""
    first = len(gguf_vocabulary())
    config = tiny_config_json(vocab_size=first + 2)
    more = {"<|im_start|>": TokenType.CONTROL, "<|im_end|>": TokenType.CONTROL}
    extra: dict[str, Any] = {"tokenizer.chat_template": CHATML, "tokenizer.ggml.eot_token_id": first + 1}
    tensors = tiny_tensors(config)
    write_tiny_gguf(tmp_path / "Tiny.gguf", config, tensors, extra=extra, more_tokens=more, split_max_tensors=8)
    bundle, notes = export(tmp_path / "Tiny-00002-of-00003.gguf", tmp_path / "bundle")
    assert (bundle.config.model_id, notes) == ("tiny", [])
    assert chat_that_prefers(bundle, first + 1, tmp_path)["finish_reason"] == "stop"


def test_a_head_that_differs_is_in_the_graph(tmp_path: Path) -> None:
    """Although config.json says that it is tied: the logits are those of the trained head."""
    source = write_tiny_checkpoint(tmp_path / "m")
    head = np.random.default_rng(3).standard_normal((257, 64)).astype(np.float32) * 0.2
    edit_tensors(source, lm_head__weight=head)
    bundle, notes = export(source, tmp_path / "bundle")
    assert "lm_head.weight differs from embed_tokens.weight" in notes[0]
    prompt = random_ids(20)
    found = new_decoder(bundle).prefill(0, prompt, 0, np.arange(20))
    np.testing.assert_allclose(found, textbook_logits(read_checkpoint(source), prompt), atol=1e-4, rtol=0)


def test_factors_of_a_gguf_are_in_the_graph_and_in_the_manifest(tmp_path: Path) -> None:
    """A bundle with them opens again, and computes with them."""
    config = tiny_config_json(vocab_size=len(gguf_vocabulary()))
    factors = {"rope_freqs.weight": np.linspace(1, 8, 8, dtype=np.float32)}
    source = write_tiny_gguf(tmp_path / "t.gguf", config, tiny_tensors(config), more_tensors=factors)
    bundle, _ = export(source, tmp_path / "bundle")
    assert open_bundle(bundle.path).config.rope_scaling.factors == tuple(
        np.linspace(1, 8, 8, dtype=np.float32).tolist()
    )
    prompt = random_ids(60)
    found = new_decoder(bundle).prefill(0, prompt, 0, np.arange(60))
    np.testing.assert_allclose(found, textbook_logits(read_checkpoint(source), prompt), atol=1e-4, rtol=0)


def test_a_chosen_id_is_the_bundles(tmp_path: Path) -> None:
    """`--model-id`, as it is written."""
    source = write_tiny_checkpoint(tmp_path / "m", num_hidden_layers=1)
    assert export(source, tmp_path / "bundle", model_id="Org/Mine")[0].config.model_id == "Org/Mine"


@pytest.mark.parametrize("model_id", ["", "a b", "a,b"])
def test_an_id_that_clients_could_not_send_is_refused_before_anything_is_read(tmp_path: Path, model_id: str) -> None:
    """With what to give."""
    with pytest.raises(ExportError, match="give one name without blanks or commas"):
        ExportRequest("default", tmp_path, model_id=model_id)
