"""The safetensors files of a checkpoint folder: which belong to the model, and what cannot be read, by name.

Separate from checkpoint.py because folders in the field hold much besides: adapters, pickles, the same weights in
another layout, half of a download. What is left out is said; what would change the answers is refused.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from model.checkpoint_error import CheckpointError, reason, way_out
from model.config import UnsupportedModelError
from model.weight_tensors import HARMLESS, UNQUANTISED, StoredTensor

INDEX_NAME = "model.safetensors.index.json"
WHOLE_NAME = "model.safetensors"
SHARD_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
ADAPTER_NAMES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors")
QUANTISATION_KEYS = ("quantization_config", "compression_config", "quantization")
OTHER_FORMATS = (  # file names, the format, what to do
    ("consolidated*", "weights in Meta's or Mistral's own layout", "give the folder that transformers reads"),
    ("*.gguf", "a GGUF file", "give the .gguf file itself"),
    ("*.bin", "pickled weights, which are never opened", "convert them to safetensors with save_pretrained"),
    ("*.pt", "pickled weights, which are never opened", "convert them to safetensors with save_pretrained"),
    ("*.pth", "pickled weights, which are never opened", "convert them to safetensors with save_pretrained"),
    ("*.ckpt", "pickled weights, which are never opened", "convert them to safetensors with save_pretrained"),
    ("*.h5", "TensorFlow's weights", "convert them to safetensors with save_pretrained"),
    ("*.msgpack", "Flax's weights", "convert them to safetensors with save_pretrained"),
    ("*.onnx", "an ONNX graph", "give the checkpoint that it was made from"),
    ("*.npz", "numpy's weights", "give the checkpoint that they were made from"),
)


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder with an adapter in it: alone it is no model, and beside one it would be left out.

    Raises:
        CheckpointError: names the adapter's file and how to merge it.
    """
    found = next((name for name in ADAPTER_NAMES if (folder / name).exists()), None)
    if found is not None:
        raise CheckpointError(
            f"{folder} holds a LoRA adapter ({found}); merge it into its model (peft's merge_and_unload, then "
            "save_pretrained) and export that, or remove the adapter's files to export the model without it"
        )


def refuse_quantised(config: Mapping[str, Any]) -> None:
    """Refuse a config.json that announces quantised weights.

    Raises:
        UnsupportedModelError: names the method.
    """
    for key in QUANTISATION_KEYS:
        value = config.get(key)
        if value:
            method = value.get("quant_method") or value.get("format") if isinstance(value, dict) else value
            bits = value.get("bits") if isinstance(value, dict) else None
            named = str(method or "a method that is not named")[:60] + (f" ({bits} bits)" if bits else "")
            raise UnsupportedModelError(
                f"config.json's {key} says that the weights are quantised with {named}; {UNQUANTISED}"
            )


def other_format(folder: Path) -> str | None:
    """One line about weights in a format that is not read, None if there are none of those either."""
    for pattern, what, advice in OTHER_FORMATS:
        file = next(iter(sorted(folder.glob(pattern))), None)
        if file is not None:
            return f"it holds {what} ({file.name}); {advice}"
    return None


def weight_files(folder: Path, index: Mapping[str, Any]) -> tuple[list[Path], list[Path]]:
    """The files that make up the model, and the .safetensors files that are left out. index: {} where there is none.

    Raises:
        CheckpointError: there are none, a shard is missing, or the index makes no sense.
    """
    present = sorted(folder.glob("*.safetensors"))
    if index:
        names = _indexed(folder, index)
    elif (folder / WHOLE_NAME).exists() or (folder / WHOLE_NAME).is_symlink():
        names = [WHOLE_NAME]
    else:
        names = [file.name for file in present if not file.name.startswith("consolidated")]
        _check_complete(folder, names)
    if not names:
        advice = other_format(folder) or f"give one with {WHOLE_NAME} (pickles are neither fetched nor opened)"
        raise CheckpointError(f"{folder} holds no .safetensors file of a model that transformers reads; {advice}")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{folder} lacks {missing[0]}{more} of its {len(names)} weight files; fetch it again")
    return [folder / name for name in names], [file for file in present if file.name not in names]


def stored_tensors(file: Path) -> list[StoredTensor]:
    """The header of a safetensors file, without tables that are computed anyway.

    Raises:
        CheckpointError: the file is damaged, or holds a type that safetensors does not know.
    """
    from safetensors import safe_open  # offline only, in the `export` extra

    try:
        with safe_open(file, framework="np") as content:
            slices = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118 - it is no mapping
            return [
                StoredTensor(plain_name(name), tuple(part.get_shape()), str(part.get_dtype()), file.name)
                for name, part in slices.items()
                if not HARMLESS.search(name)
            ]
    except Exception as error:  # safetensors raises many unrelated types
        raise CheckpointError(f"cannot read {file}: {reason(error)}; {way_out(file)}") from error


def read_tensors(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Each tensor of a safetensors file that `stored_tensors` lists, as float32.

    Raises:
        CheckpointError: the file is damaged.
    """
    from safetensors import safe_open  # offline only, in the `export` extra

    try:
        with safe_open(file, framework="pt") as content:  # torch reads bfloat16, which numpy lacks
            for name in content.keys():  # noqa: SIM118 - safe_open is no mapping
                if not HARMLESS.search(name):
                    yield plain_name(name), content.get_tensor(name).float().numpy()
    except Exception as error:  # safetensors and torch raise many unrelated types
        raise CheckpointError(f"cannot read {file}: {reason(error)}; {way_out(file)}") from error


def plain_name(name: str) -> str:
    """A tensor's name without the `model.` prefix."""
    return name.removeprefix("model.")


def _indexed(folder: Path, index: Mapping[str, Any]) -> list[str]:
    """The files that an index names."""
    try:
        names = sorted(set(index["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / INDEX_NAME} has no weight_map from tensor names to file names") from error
    if outside:
        raise CheckpointError(f"{folder / INDEX_NAME} names {outside[0]!r}, which lies outside the folder")
    if odd := [name for name in names if not name.endswith(".safetensors")]:
        raise CheckpointError(f"{folder / INDEX_NAME} names {odd[0]!r}, which is no .safetensors file")
    return names


def _check_complete(folder: Path, names: list[str]) -> None:
    """Without an index, the names of the shards tell how many there must be."""
    matches = [match for match in map(SHARD_NAME.fullmatch, names) if match]
    for match in matches:
        count = int(match["count"])
        numbers = {
            int(other["number"])
            for other in matches
            if (other["stem"], other["count"]) == (match["stem"], match["count"])
        }
        missing = sorted(set(range(1, min(count, 10_000) + 1)) - numbers)
        if missing:
            name = f"{match['stem']}-{missing[0]:05d}-of-{match['count']}.safetensors"
            raise CheckpointError(f"{folder} lacks {name}, one of {len(missing)} missing weight files; fetch it again")
