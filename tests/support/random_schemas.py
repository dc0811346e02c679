"""Random JSON schemas whose answers are bounded: the same seed, the same schema.

Separate from the tests so that a schema which fails can be made again from its seed alone. Every string, number, array
and object has an upper bound, so that even at a high temperature an answer ends.
"""

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

MAX_DEPTH = 3  # objects in objects
NAMES = ["age", "city", "due date", "élan", "id", "名前", "note", "rank", 'say "hi"', "tag", "x\\y"]
CONSTANTS = [*NAMES, "", 0, 3, -1.5, True, False, None]


def random_schema(seed: int) -> Schema:
    """An object's schema, with others in it up to MAX_DEPTH."""
    return _object(random.Random(seed), 1)


def random_tool(seed: int) -> dict[str, Any]:
    """A tool of a chat completion; its parameters are a random object's schema."""
    return {"type": "function", "function": {"name": f"tool_{seed}", "parameters": random_schema(seed)}}


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(NAMES, rng.randint(1, 3))
    return {
        "type": "object",
        "properties": {name: _value(rng, depth) for name in names},
        "required": [name for name in names if rng.random() < 0.7],
        "additionalProperties": False,
    }


def _value(rng: random.Random, depth: int) -> Schema:
    """Any schema. depth: of the object around it; at the deepest there are no objects and arrays."""
    leaves: list[Callable[[random.Random], Schema]] = [_string, _integer, _number, _boolean, _enum, _const, _nullable]
    branches: list[Callable[[random.Random, int], Schema]] = [_object, _array, _any_of]
    if depth < MAX_DEPTH and rng.random() < 0.4:
        return rng.choice(branches)(rng, depth + 1)
    return rng.choice(leaves)(rng)


def _string(rng: random.Random) -> Schema:
    most = rng.randint(0, 8)
    fewest = {"minLength": rng.randint(0, most)} if rng.random() < 0.3 else {}
    return {"type": "string", **fewest, "maxLength": most}


def _integer(rng: random.Random) -> Schema:
    least = rng.randint(-1000, 1000)
    return {"type": "integer", "minimum": least, "maximum": least + rng.choice([0, 1, 9, 250, 100_000])}


def _number(rng: random.Random) -> Schema:
    """Between two bounds; how many digits it may have is the service's business."""
    least = rng.randint(-400, 400) / 4
    return {
        "type": "number",
        "minimum": least,
        "maximum": least + rng.choice([0.5, 1, 17.25, 2500]),
    }


def _boolean(_: random.Random) -> Schema:
    return {"type": "boolean"}


def _enum(rng: random.Random) -> Schema:
    return {"enum": rng.sample(CONSTANTS, rng.randint(1, 5))}


def _const(rng: random.Random) -> Schema:
    return {"const": rng.choice([*CONSTANTS, [], [1, "a"], {"k": [None, {"z": 1}]}])}


def _nullable(rng: random.Random) -> Schema:
    inner = rng.choice([_string, _integer, _number])(rng)
    return {**inner, "type": [inner["type"], "null"]}


def _array(rng: random.Random, depth: int) -> Schema:
    most = rng.randint(0, 3)
    fewest = {"minItems": rng.randint(0, most)} if rng.random() < 0.4 else {}
    return {"type": "array", "items": _value(rng, depth), **fewest, "maxItems": most}


def _any_of(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [_value(rng, depth) for _ in range(rng.randint(2, 3))]}
