"""Bundles prove themselves: every kind of damage is a BundleError of one line."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.bundle import (
    MANIFEST_NAME,
    Bundle,
    BundleError,
    open_bundle,
    past_key_value_names,
    present_name,
    read_manifest,
)
from tests.support.errors import one_line
from tests.support.tiny_checkpoint import CHAT_TEMPLATE, tiny_tokenizer_json

FILES = ("model.onnx", "model.onnx.data", "top_k.onnx", "weight_sums.onnx", "tokenizer.json", "chat_template.jinja")


@pytest.fixture
def bundle_copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest's values in place."""
    file = folder / MANIFEST_NAME
    values = json.loads(file.read_text())
    edit(values)
    file.write_text(json.dumps(values))


def test_valid_bundle_opens_with_what_was_exported(tiny_bundle: Bundle) -> None:
    """Geometry, texts and provenance come back; the folder holds the listed files and nothing else."""
    bundle = open_bundle(tiny_bundle.path)
    assert bundle == tiny_bundle
    assert set(bundle.manifest.files) == set(FILES)
    assert {file.name for file in bundle.path.iterdir()} == {MANIFEST_NAME, *FILES}
    assert json.loads(bundle.tokenizer_json) == json.loads(tiny_tokenizer_json())
    assert bundle.chat_template == CHAT_TEMPLATE
    assert (bundle.manifest.precision, bundle.manifest.device) == ("fp32", "cpu")
    assert {source["name"] for source in bundle.manifest.sources} >= {"config.json", "model.safetensors"}


def test_manifest_survives_json(tiny_bundle: Bundle) -> None:
    """What is written equals what is read."""
    written = json.loads((tiny_bundle.path / MANIFEST_NAME).read_text())
    assert json.loads(json.dumps(read_manifest(tiny_bundle.path).to_json())) == written


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_one_flipped_bit_is_refused(bundle_copy: Path, name: str, place: float) -> None:
    """At the start, in the middle and at the end of every file; the message names it."""
    file = bundle_copy / name
    content = bytearray(file.read_bytes())
    content[round(place * (len(content) - 1))] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"is damaged: sha256 .*export the bundle again") as caught:
        open_bundle(bundle_copy)
    assert str(file) in one_line(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_refused(bundle_copy: Path, name: str) -> None:
    """A bundle copied in part."""
    (bundle_copy / name).unlink()
    with pytest.raises(BundleError, match=f"lacks {name}, which its manifest lists"):
        open_bundle(bundle_copy)


def test_file_that_became_a_folder_is_refused(bundle_copy: Path) -> None:
    """It is there, but cannot be read."""
    (bundle_copy / "tokenizer.json").unlink()
    (bundle_copy / "tokenizer.json").mkdir()
    with pytest.raises(BundleError, match=r"cannot read .*tokenizer\.json"):
        open_bundle(bundle_copy)


@pytest.mark.parametrize("kind", ["missing", "empty folder", "file"])
def test_no_bundle_says_how_to_make_one(tmp_path: Path, kind: str) -> None:
    """A wrong path is the most common mistake."""
    path = tmp_path / "nothing"
    if kind == "empty folder":
        path.mkdir()
    elif kind == "file":
        path.touch()
    with pytest.raises(BundleError, match=rf"no bundle at {path}: .*`attend export default --out {path}`") as caught:
        open_bundle(path)
    one_line(caught.value)


@pytest.mark.parametrize("version", [0, 1, "2", None, [2]])
def test_other_format_version_is_refused(bundle_copy: Path, version: Any) -> None:
    """Both versions are named."""
    edit_manifest(bundle_copy, lambda values: values.update(format_version=version))
    with pytest.raises(BundleError, match="this release reads version 2; export the bundle again") as caught:
        open_bundle(bundle_copy)
    assert repr(version) in one_line(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b'"text"',
        b'{"format_version": 1',
        b'{"format_version": 1}',
        b"\xff\xfe",
        b"\x00" * 100,
        b"[" * 100_000,
    ],
)
def test_manifest_that_is_none_is_refused(bundle_copy: Path, content: bytes) -> None:
    """Not JSON, cut short, not an object, or without content."""
    (bundle_copy / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(BundleError, match="export the bundle again") as caught:
        open_bundle(bundle_copy)
    one_line(caught.value)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "folder/file", "..", "", "a" * 5000, "nul\0byte"])
def test_manifest_naming_a_file_outside_the_bundle_is_refused(bundle_copy: Path, name: str) -> None:
    """Even where the hash is right, nothing outside the folder is opened."""
    secret = bundle_copy.parent / "secret"
    secret.write_bytes(b"x")
    edit_manifest(bundle_copy, lambda values: values["files"].update({name: hashlib.sha256(b"x").hexdigest()}))
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle_copy)
    one_line(caught.value)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_manifest_that_lists_too_little_is_refused(bundle_copy: Path, name: str) -> None:
    """A file that is not listed would not be checked."""
    edit_manifest(bundle_copy, lambda values: values["files"].pop(name))
    with pytest.raises(BundleError, match=f"files lack {name}"):
        open_bundle(bundle_copy)


PATHS = (
    ("geometry",),
    ("geometry", "vocab_size"),
    ("geometry", "eos_token_ids"),
    ("geometry", "rope_scaling"),
    ("geometry", "rope_theta"),
    ("precision",),
    ("opset",),
    ("licence",),
    ("sources",),
    ("special_tokens",),
    ("exporter",),
    ("files",),
)
NONSENSE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(path=st.sampled_from(PATHS), value=NONSENSE)
@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # each example writes the whole manifest
)
def test_manifest_with_any_value_replaced_opens_or_is_a_bundle_error(
    tiny_bundle: Bundle, tmp_path: Path, path: tuple[str, ...], value: Any
) -> None:
    """No other type escapes, whatever JSON stands anywhere."""
    values = tiny_bundle.manifest.to_json()
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(values))
    try:
        read_manifest(tmp_path)
    except BundleError as error:
        one_line(error)


def test_cache_names_pair_inputs_with_outputs() -> None:
    """Key then value of each layer; an output continues the input of the same name."""
    assert past_key_value_names(2) == ["past_key_0", "past_value_0", "past_key_1", "past_value_1"]
    assert present_name("past_value_1") == "present_value_1"


def test_a_line_break_in_a_manifests_own_words_stays_out_of_the_message(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Messages repeat what stands in the file, and are one line all the same."""
    values = tiny_bundle.manifest.to_json()
    values["geometry"]["rope_scaling"] = {"a\nb": 1}
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(values))
    with pytest.raises(BundleError, match="a b") as caught:
        read_manifest(tmp_path)
    one_line(caught.value)
