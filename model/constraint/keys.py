"""KeyGuard: keeps an object from naming one property twice, or too many, which no grammar can.

Separate from the matcher because a grammar has no memory of names, and a name written three times must not count as
three properties. It follows the JSON of an answer byte by byte and takes from what the grammar allows the tokens that
would close a known name again. JSON is compact here (", " and ": "), as the grammar writes it.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from model.constraint.tool_syntax import TOOL_CALL_BEGIN

MAX_KEY_BYTES = 64  # of a name that the model makes up

_BEGIN = TOOL_CALL_BEGIN.encode()
_QUOTE, _BACKSLASH, _COMMA, _U = b'"\\,u'
_OPENING, _CLOSING = b"{[", b"}]"


@dataclass(frozen=True)
class KeyRules:
    """The places where objects may name their own properties. most_keys: of one object.

    in_answer: the answer is JSON, unless it begins with a call. in_calls: the arguments of calls are.
    """

    most_keys: int
    in_answer: bool
    in_calls: bool


class TokenBytes:
    """The bytes of every token, and which tokens could break a rule. One for all constraints of a model."""

    def __init__(self, texts: list[bytes]) -> None:
        """texts: by token id."""
        self.texts = texts

    def prepare(self) -> None:
        """Make the tables now rather than at the first request."""
        self.beginning_with(b'"')
        for _table in (self.with_names, self.with_commas, self.are_quotes):
            pass

    @cached_property
    def _sorted(self) -> tuple[list[bytes], list[int]]:
        pairs = sorted((text, token_id) for token_id, text in enumerate(self.texts))
        return [text for text, _ in pairs], [token_id for _, token_id in pairs]

    def beginning_with(self, prefix: bytes) -> list[int]:
        """The tokens that begin with these bytes, of which the last is below 255."""
        texts, ids = self._sorted
        after = prefix[:-1] + bytes([prefix[-1] + 1])
        return ids[bisect_left(texts, prefix) : bisect_left(texts, after)]

    @cached_property
    def with_names(self) -> list[int]:
        """Tokens that could hold a name from quote to quote, or an escape of a name's character."""
        return [index for index, text in enumerate(self.texts) if text.count(b'"') > 1 or b"\\u" in text]

    @cached_property
    def with_commas(self) -> list[int]:
        """Tokens that could begin another property."""
        return [index for index, text in enumerate(self.texts) if b"," in text]

    @cached_property
    def are_quotes(self) -> npt.NDArray[np.bool_]:
        """Whether each token begins with a quote."""
        return np.array([text.startswith(b'"') for text in self.texts], np.bool_)


@dataclass
class _Container:
    """An object or array that is open. names: of an object's properties so far.

    has_repeated: the grammar left no other name, as a pattern does that few match; so nothing more is added.
    """

    is_object: bool
    awaits_name: bool
    names: set[bytes] = field(default_factory=set)
    has_repeated: bool = False

    def copy(self) -> "_Container":
        """One that goes on by itself."""
        return replace(self, names=set(self.names))

    def is_full(self, most_keys: int) -> bool:
        """Whether it is an object that takes no further property."""
        return self.is_object and (self.has_repeated or len(self.names) >= most_keys)


class _Reader:
    """The place that the answer's text has reached: outside JSON, in a container, in a name, in another string."""

    def __init__(self, rules: KeyRules) -> None:
        self._rules = rules
        self._tail = b""  # of the text outside
        self.is_json = rules.in_answer
        self.containers: list[_Container] = []
        self.name: bytearray | None = None
        self.is_in_string = False
        self.is_escaped = False
        self._is_at_start = True

    def copy(self) -> "_Reader":
        """One that reads on by itself."""
        other = _Reader(self._rules)
        other.__dict__.update(self.__dict__)
        other.containers = [each.copy() for each in self.containers]
        other.name = None if self.name is None else bytearray(self.name)
        return other

    def read(self, text: bytes) -> bool:
        """Go on behind this text. Whether it keeps the rules."""
        if self._is_at_start and text:
            self._is_at_start = False
            self.is_json = self.is_json and not (self._rules.in_calls and text.startswith(_BEGIN[:1]))
        if not self.is_json:
            self._tail += text
            at = self._tail.find(_BEGIN) if self._rules.in_calls else -1
            if at < 0:
                self._tail = self._tail[-len(_BEGIN) :]
                return True
            text, self._tail, self.is_json = self._tail[at + len(_BEGIN) :], b"", True
        for index, byte in enumerate(text):
            if not (self._read_in_string(byte) if self.is_in_string else self._read_outside(byte)):
                return False
            if not self.is_json:
                self._tail = text[index + 1 :]
                break
        return True

    @property
    def is_full(self) -> bool:
        """Whether an object that is open has all the properties that it may have."""
        return any(each.is_full(self._rules.most_keys) for each in self.containers)

    def _read_in_string(self, byte: int) -> bool:
        if byte == _QUOTE and not self.is_escaped:
            self.is_in_string = False
            return self.name is None or self._close_name()
        is_unusual = self.name is not None and self.is_escaped and byte == _U  # another spelling of a known name
        if self.name is not None:
            self.name.append(byte)
        self.is_escaped = byte == _BACKSLASH and not self.is_escaped
        return not is_unusual

    def _close_name(self) -> bool:
        assert self.name is not None, "a name is being read"
        top, name = self.containers[-1], bytes(self.name)
        self.name = None
        is_new = name not in top.names
        top.has_repeated |= not is_new
        top.names.add(name)
        return is_new

    def _read_outside(self, byte: int) -> bool:
        top = self.containers[-1] if self.containers else None
        if byte == _QUOTE:
            self.is_in_string = True
            if top is not None and top.awaits_name:
                self.name, top.awaits_name = bytearray(), False
        elif byte in _OPENING:
            self.containers.append(_Container(is_object=byte == _OPENING[0], awaits_name=byte == _OPENING[0]))
        elif byte in _CLOSING and self.containers:
            self.containers.pop()
            self.is_json = bool(self.containers) or not self._rules.in_calls
        elif byte == _COMMA and top is not None and top.is_object:
            top.awaits_name = True
            return not top.is_full(self._rules.most_keys)
        return True


class KeyGuard:
    """The rules of one answer."""

    def __init__(self, rules: KeyRules, tokens: TokenBytes) -> None:
        self._tokens = tokens
        self._reader = _Reader(rules)

    def read(self, token_id: int) -> None:
        """Note a token that was chosen; where the grammar left no other, it may break a rule."""
        reader, text = self._reader, self._tokens.texts[token_id]
        for index in range(len(text)):
            reader.read(text[index : index + 1])

    def restricted(self, allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Those tokens of the grammar's [V] that keep the rules; all of them if none does."""
        reader = self._reader
        if not reader.is_json or not reader.containers:
            return allowed
        suspects = [index for index in self._suspects() if index < len(allowed) and allowed[index]]
        broken = [index for index in suspects if not reader.copy().read(self._tokens.texts[index])]
        kept = allowed
        if broken:
            kept = allowed.copy()
            kept[broken] = False
        if reader.name is not None and len(reader.name) >= MAX_KEY_BYTES:
            quotes = np.zeros_like(kept)
            size = min(len(quotes), len(self._tokens.are_quotes))
            quotes[:size] = kept[:size] & self._tokens.are_quotes[:size]
            kept = quotes if quotes.any() else kept
        return kept if kept.any() else allowed

    def _suspects(self) -> Iterable[int]:
        """The tokens that could break a rule here; few, for each is read to see."""
        reader, tokens = self._reader, self._tokens
        suspects = list(tokens.with_names)
        if reader.is_full:
            suspects += tokens.with_commas
        if reader.name is not None:
            if reader.is_escaped:
                suspects += tokens.beginning_with(b"u")
            written = bytes(reader.name)
            for name in reader.containers[-1].names:
                if name.startswith(written):
                    suspects += tokens.beginning_with(name[len(written) :] + b'"')
        return suspects
