"""GGUF files on disk: one file, or the parts of a split one, opened together.

Separate from gguf_file.py, which knows what is in them. Parts are named `NAME-00002-of-00003.gguf`; the first one
holds the metadata, and any of them stands for all.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType

from model.config import UnsupportedModelError

PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
OLD_TYPES = {  # numbers that ggml used once
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}


class Fields:
    """Typed access to a file's metadata."""

    def __init__(self, reader: GGUFReader) -> None:
        """Look into a file that has been opened."""
        self._fields = reader.fields

    def get(self, key: str, default: Any = None) -> Any:
        """A value, or the default where there is none."""
        field = self._fields.get(key)
        return default if field is None else field.contents()

    def need(self, key: str) -> Any:
        """A value that must be there.

        Raises:
            ValueError: it is not.
        """
        if key not in self._fields:
            raise ValueError(f"the metadata lacks {key}")
        return self.get(key)

    def length(self, key: str) -> int:
        """The length of an array, 0 where there is none."""
        field = self._fields.get(key)
        return len(field.data) if field is not None and field.types[0] == GGUFValueType.ARRAY else 0


class Reader(GGUFReader):  # type: ignore[misc]  # gguf comes without types
    """Refuses to read past the end, where GGUFReader goes on with empty values: a short file, or a count too large."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
            raise ValueError("the file ends before its content does; it was cut short or damaged, fetch it again")
        return super()._get(offset, dtype, count, override_order)

    def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
        known = {int(kind) for kind in GGMLQuantizationType}
        for field in fields:
            name, number = bytes(field.parts[1]).decode("utf-8"), int(field.parts[4][0])
            if number not in known:
                kind = OLD_TYPES.get(number, f"type {number}")
                raise UnsupportedModelError(
                    f"GGUF tensor {name!r} is stored as {kind}, which is not supported; give the file in another "
                    "quantisation, such as Q8_0 or Q4_K_M"
                )
        super()._build_tensors(start_offs, fields)


def part_paths(path: Path) -> list[Path]:
    """The files that belong to a .gguf file: itself, or every part of the split file that it is a part of.

    Raises:
        ValueError: a part is missing; says which.
    """
    match = PART_NAME.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    names = (f"{match['stem']}-{number:05d}-of-{match['count']}.gguf" for number in range(1, count + 1))
    paths = [path.with_name(name) for name in names]
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        raise ValueError(
            f"it is one of {count} parts, of which {missing[0]} is missing ({len(missing)} in all); put all parts into "
            "one folder"
        )
    return paths


def open_parts(path: Path) -> tuple[Fields, list[Reader]]:
    """The metadata and the open files of a .gguf file or of all parts of a split one, in order.

    Raises:
        ValueError: a part is missing, damaged or not what its name says.
    """
    paths = part_paths(path)
    readers = [Reader(part) for part in paths]
    for number, (part, reader) in enumerate(zip(paths, readers, strict=True)):
        own = Fields(reader)
        stated = (int(own.get("split.no", number)), int(own.get("split.count", len(paths)) or 1))
        if stated != (number, len(paths)):
            raise ValueError(
                f"{part.name} says that it is part {stated[0] + 1} of {stated[1]}; name the parts "
                "NAME-00001-of-00003.gguf and so on, in one folder, or join them with `llama-gguf-split --merge`"
            )
    fields, found = Fields(readers[0]), sum(len(reader.tensors) for reader in readers)
    stated_tensors = int(fields.get("split.tensors.count", found))
    if stated_tensors != found:
        raise ValueError(f"its parts hold {found} tensors, its metadata says {stated_tensors}; fetch them again")
    return fields, readers
