"""Pick from a recording the requests that carry a client's own history, and write them to tests/clients/recorded.

Usage: python -m tests.clients.pick_recorded FILE, where `python -m tests.clients.run --record FILE` wrote the file.
tests/unit/service/test_recorded_clients.py replays them without the clients. One request of each shape is kept: two
that differ only in texts are the same to the service. Random ids become numbers, and addresses in texts are removed.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parent / "recorded"
MAX_PER_CLIENT = 8
RANDOM_ID = re.compile(r"\b(call|fc|msg|resp|chatcmpl|rs)_?-?[0-9A-Za-z]{16,}\b")
ADDRESS = re.compile(r"https?://\S+?(?=[\\\s\"')]|$)")
JSON_SCHEMA_ADDRESS = "http://json-schema.org/"  # a name, not a place

Json = dict[str, Any]


def main() -> None:
    """Read, pick, write one file per client."""
    exchanges = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    RECORDED.mkdir(exist_ok=True)
    for client in sorted({exchange["client"] for exchange in exchanges}):
        picked = list(pick(exchange for exchange in exchanges if exchange["client"] == client))[:MAX_PER_CLIENT]
        if picked:
            text = json.dumps(picked, indent=1, ensure_ascii=False)
            (RECORDED / f"{client}.json").write_text(f"{text}\n", encoding="utf-8")
            print(f"{client}: {len(picked)} requests, {len(text):,} characters")


def pick(exchanges: Iterable[Mapping[str, Any]]) -> Iterator[Json]:
    """One request of each shape that carries history, without what names a place or differs in every run."""
    seen: set[str] = set()
    for exchange in exchanges:
        request = exchange["request"]
        if not isinstance(request, dict) or not has_history(request):
            continue
        shape = f"{exchange['route']} {shape_of(request)}"
        if shape not in seen:
            seen.add(shape)
            yield {"route": exchange["route"].removeprefix("POST "), "request": sanitised(request)}


def has_history(request: Mapping[str, Any]) -> bool:
    """Whether something that the model said, or that a tool gave back, is in the conversation."""
    turns = request.get("messages") or request.get("input") or []
    return isinstance(turns, list) and any(
        turn.get("role") in ("assistant", "tool") or str(turn.get("type")).startswith("function_call") for turn in turns
    )


def shape_of(value: Any) -> Any:
    """The names and types of a value's members, not its texts; a list's elements once each."""
    match value:
        case dict():
            return {name: _shape_of_member(name, member) for name, member in sorted(value.items())}
        case list():
            return sorted({json.dumps(shape_of(element), sort_keys=True) for element in value})
        case _:
            return type(value).__name__


def _shape_of_member(name: str, member: Any) -> Any:
    if name in ("role", "type", "stream"):
        return member if isinstance(member, str | bool) else shape_of(member)
    return "schema" if name in ("parameters", "schema") else shape_of(member)


def sanitised(request: Json) -> Json:
    """The same request with ids numbered in order and no addresses."""
    numbers: dict[str, str] = {}

    def numbered(found: re.Match[str]) -> str:
        return numbers.setdefault(found.group(), f"{found.group(1)}_{len(numbers) + 1}")

    def without_address(found: re.Match[str]) -> str:
        return found.group() if found.group().startswith(JSON_SCHEMA_ADDRESS) else "(address)"

    text = RANDOM_ID.sub(numbered, json.dumps(request, ensure_ascii=False))
    result: Json = json.loads(ADDRESS.sub(without_address, text))
    return result


if __name__ == "__main__":
    main()
