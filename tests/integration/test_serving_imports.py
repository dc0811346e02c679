"""What serves must not load torch, or anything else that belongs to exporting."""

import subprocess
import sys

from model.bundle import Bundle

OFFLINE_ONLY = ("torch", "transformers", "onnx", "onnxscript", "gguf", "safetensors")

SERVE_AND_ASK = """
import sys
from pathlib import Path
from fastapi.testclient import TestClient
import service.cli, service.standalone, service.deployment, service.local
from service.app import build_app
from service.settings import Settings

with TestClient(build_app(Settings(bundle=Path(sys.argv[1])))) as client:
    answer = client.post("/v1/generate", json={"prompt": "hello", "max_tokens": 3})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["token_ids"]) == 3
print("loaded:", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_a_service_that_has_answered_has_loaded_nothing_of_the_exporter(tiny_bundle: Bundle) -> None:
    """In a fresh interpreter: build the app, answer a request, look at what was imported."""
    command = [sys.executable, "-c", SERVE_AND_ASK, str(tiny_bundle.path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.splitlines()[-1].split()[1:])
    assert {"onnxruntime", "fastapi", "service"} <= loaded
    assert not loaded & set(OFFLINE_ONLY)
