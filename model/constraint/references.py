"""The targets of `$ref` within one document."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from model.constraint.place import Place


def resolved(document: Mapping[str, Any], reference: str, place: Place) -> Any:
    """The schema that a reference names, by pointer (`#/$defs/a`) or anchor (`#a`).

    Raises:
        ConstraintError: it names another document, or nothing.
    """
    reference = _within(document, reference)
    if not reference.startswith("#"):
        raise place.error(f'refers to {reference!r:.80}; only references within it ("#/...") are allowed')
    pointer = unquote(reference[1:])
    if pointer and not pointer.startswith("/"):
        return _anchored(document, pointer, place)
    node: Any = document
    for step in pointer.split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(node, Mapping) and key in node:
            node = node[key]
        elif isinstance(node, list | tuple) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        else:
            raise place.error(f"refers to {reference!r:.80}, which the schema does not have")
    return node


def _within(document: Mapping[str, Any], reference: str) -> str:
    """A reference without the document's own address."""
    address = document.get("$id", document.get("id"))
    if not isinstance(address, str) or reference.startswith("#"):
        return reference
    try:
        whole, fragment = urldefrag(urljoin(address, reference))
        return f"#{fragment}" if whole == urldefrag(address).url else reference
    except ValueError:  # no address
        return reference


def _anchored(document: Mapping[str, Any], name: str, place: Place) -> Any:
    waiting: list[Any] = [document]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Mapping) and (node.get("$anchor") == name or node.get("$id") == f"#{name}"):
            return node
        if isinstance(node, Mapping | list | tuple):
            waiting += node.values() if isinstance(node, Mapping) else node
    raise place.error(f"refers to '#{name:.80}', which the schema does not have")
