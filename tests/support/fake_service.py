"""The whole app around a fake decoder: real routes, engine and tokenizer, no model."""

import json
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from model.bundle import CHAT_TEMPLATE_NAME, MANIFEST_NAME, TOKENIZER_NAME, Bundle, Manifest
from service.app import assemble
from service.settings import Settings
from tests.support.fake_decoder import FAKE_CONFIG, FakeDecoder
from tests.support.tiny_checkpoint import CHAT_TEMPLATE, tiny_tokenizer_json

MODEL_ID = FAKE_CONFIG.model_id


def fake_bundle(folder: Path, *, chat_template: str | None = CHAT_TEMPLATE) -> Bundle:
    """A bundle folder with everything but the graph."""
    files = {TOKENIZER_NAME: tiny_tokenizer_json()}
    if chat_template is not None:
        files[CHAT_TEMPLATE_NAME] = chat_template
    manifest = Manifest(
        config=FAKE_CONFIG,
        precision="fp32",
        device="cpu",
        opset=21,
        licence="none",
        sources=(),
        special_tokens={},
        exporter={},
        files=dict.fromkeys(files, ""),
    )
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest.to_json()))
    return Bundle(folder, manifest)


def fake_app(
    folder: Path, decoder: FakeDecoder, *, chat_template: str | None = CHAT_TEMPLATE, **settings: Any
) -> FastAPI:
    """The app of a fake bundle and decoder."""
    bundle = fake_bundle(folder, chat_template=chat_template)
    return assemble(Settings(bundle=folder, prefill_chunk_tokens=64, **settings), bundle, decoder)
