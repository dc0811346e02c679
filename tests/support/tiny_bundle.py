"""A bundle folder that opens, without a model in it: for tests of what finds bundles, which load no graph."""

import json
from pathlib import Path

from model.bundle import (
    EXPORTER_KEY,
    EXPORTER_VERSION,
    MANIFEST_NAME,
    REQUIRED_FILES,
    Bundle,
    Manifest,
    file_sha256,
    open_bundle,
)
from tests.support.fake_decoder import FAKE_CONFIG


def write_hollow_bundle(folder: Path, precision: str = "w8a8", exporter: str = EXPORTER_VERSION) -> Bundle:
    """Write the files of a bundle, each with its own name as content."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in REQUIRED_FILES:
        (folder / name).write_text(name)
    manifest = Manifest(
        config=FAKE_CONFIG,
        precision=precision,
        device="cpu",
        opset=21,
        licence="none",
        sources=(),
        special_tokens={},
        exporter={EXPORTER_KEY: exporter},
        files={name: file_sha256(folder / name) for name in REQUIRED_FILES},
    )
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest.to_json()))
    return open_bundle(folder)
