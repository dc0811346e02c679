"""The place of SOURCE's bundle in the cache. Offline only.

Separate from bundle_writer.py, which writes a bundle wherever it is told to. Here the place follows from what is in it:
the source's name, the precision and the digest of the source's files. So a source that has changed gets a folder of its
own, and one that has not finds its bundle again; the writer makes it anew when another exporter wrote it.
"""

import hashlib
import re
from pathlib import Path

from model.bundle_writer import Say, default_bundle_path
from model.checkpoint import DEFAULT_SOURCE, SourceFile, resolve_source, source_files

BUNDLES_FOLDER = "bundles"
DIGEST_CHARACTERS = 12
MAX_NAME_CHARACTERS = 60


def cached_bundle_path(
    source: str, precision: str, cache_dir: Path, say: Say = lambda _: None, *, model_id: str | None = None
) -> Path:
    """The folder in the cache that the bundle of SOURCE at a precision belongs in; may download the source.

    model_id: a name for the model other than the source's own; under each it is another bundle.

    Raises:
        CheckpointError: the source cannot be read.
    """
    if source == DEFAULT_SOURCE and model_id is None:
        return default_bundle_path(cache_dir, precision)
    path = resolve_source(source, cache_dir, say)
    say("checking the source")
    return cache_dir / BUNDLES_FOLDER / folder_name(model_id or source, precision, source_files(path))


def folder_name(name: str, precision: str, files: tuple[SourceFile, ...]) -> str:
    """`NAME-PRECISION-DIGEST`: legible, and another one for other files. name: SOURCE, or the model's own."""
    digest = hashlib.sha256("\n".join(f"{file.name} {file.sha256}" for file in files).encode()).hexdigest()
    last_part = Path(name).resolve().name.removesuffix(".gguf").lower()
    legible = re.sub(r"[^a-z0-9._]+", "-", last_part)[:MAX_NAME_CHARACTERS].strip("-.")
    return f"{legible or 'model'}-{precision}-{digest[:DIGEST_CHARACTERS]}"
