"""The id that a model gets when nobody chooses one: from its place, never from a hash.

Separate from reading, because it needs nothing of the weights. Explicit ids (`--model-id`) are checked here too.
"""

import os
import re
from pathlib import Path

SPLIT_PART = re.compile(r"-\d{5}-of-\d{5}$")  # llama.cpp's names of a split file's parts
HUB_FOLDER = "models--"  # how the hub's cache begins the name of a repository's folder
NAMES_NOTHING = re.compile(
    r"(?=.*\d)(?=.*[a-f])[0-9a-f]{7,}"  # a commit or the hash of a file
    r"|[0-9a-f]{12,}"
    r"|sha256[-:][0-9a-f]+"
    r"|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"  # a UUID
    r"|\d+"  # a version's folder
)
GENERIC_FILE = re.compile(r"(ggml-)?model([-_.].*)?")  # what converters call their output
MAX_MODEL_ID_CHARACTERS = 200


def model_name(path: Path, stated: str | None = None) -> str:
    """A model's id from the path of its folder or file, in lower case with `-` for blanks.

    A folder in the hub's cache is named after its repository, a file after itself, both without any hash. stated: what
    the checkpoint calls itself, asked when its place says nothing.
    """
    whole = Path(os.path.abspath(path))  # noqa: PTH100 - the hub's cache links files to blobs that hashes name
    hub = hub_name(whole) or hub_name(whole.resolve())
    claimed = (stated or "").replace("\\", "/").rstrip("/").rpartition("/")[2]
    if path.is_file():
        own = SPLIT_PART.sub("", whole.name.removesuffix(".gguf"))
        names = [claimed, hub, own] if GENERIC_FILE.fullmatch(own.lower()) else [own, claimed, hub]
    else:
        names = [hub, whole.name, claimed]
    for name in [*names, whole.parent.name]:
        tidy = "-".join((name or "").lower().split())
        if tidy.strip(".") and not NAMES_NOTHING.fullmatch(tidy):
            return tidy
    return "model"


def hub_name(path: Path) -> str | None:
    """`name` where the path leads through the hub cache's `models--org--name`; None elsewhere."""
    folder = next((part for part in reversed(path.parts) if part.startswith(HUB_FOLDER)), None)
    return None if folder is None else folder.split("--", 2)[-1]


def model_id_fault(model_id: str) -> str | None:
    """One line about an explicit id that clients could not send back; None for a good one."""
    if not model_id or model_id.split() != [model_id] or not model_id.isprintable() or "," in model_id:
        return f"model id {model_id!r} cannot be used; give one name without blanks or commas, such as my-model"
    if len(model_id) > MAX_MODEL_ID_CHARACTERS:
        return f"the model id has {len(model_id)} characters; give at most {MAX_MODEL_ID_CHARACTERS}"
    return None
