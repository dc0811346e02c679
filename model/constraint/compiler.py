"""ConstraintCompiler: makes constraints for one tokenizer, within bounds of time and memory.

This and its neighbours are the only modules that know llguidance, which turns a grammar into the set of tokens that may
come next.
"""

import contextlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from model.constraint.blame import place_at_fault
from model.constraint.errors import ConstraintError, one_line
from model.constraint.keys import KeyGuard
from model.constraint.matcher import Constraint
from model.constraint.spec import ConstraintSpec
from model.constraint.vocabulary import Vocabulary

# Without it llguidance follows text that has no alternative to its end in one step: 1.4 s for the regex a{1000}{1000}.
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'
_MOST_LEXER_STATES = 20_000  # of 1 to 2 kB
_MOST_WRITTEN_SYMBOLS = 5_000
_MOST_GENERATED_SYMBOLS = 60_000  # llguidance panics above 65,525
# llguidance descends one frame per nested rule: 3,000 rules, each naming the next, overrun the usual 8 MiB and end the
# process. 64 KiB of grammar fit 64 MiB; this is address space, of which only what is used is committed.
_BUILDER_STACK_BYTES = 256 * 1024 * 1024


class ConstraintCompiler:
    """Compiles constraints for one tokenizer, and remembers the last ones. Thread-safe.

    Compiling takes about a millisecond, at worst about a second, and releases the interpreter lock; call it off the
    event loop. One compilation runs at a time, so that hostile constraints occupy one core.
    """

    def __init__(
        self, tokenizer_json: str, vocab_size: int, eos_token_ids: Sequence[int], *, cache_entries: int = 64
    ) -> None:
        """Cheap: the tokenizer is read on first use.

        vocab_size: V of the logits. eos_token_ids: every token that ends an answer. cache_entries: prototypes to keep.
        """
        self._tokenizer_json = tokenizer_json
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)
        self._cache_entries = cache_entries
        self._prototypes: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()
        self._cache_lock = threading.Lock()
        self._builder_lock = threading.Lock()
        self._builder: _Builder | None = None

    def warm_up(self) -> None:
        """Read the tokenizer now, which keeps the interpreter lock for a moment, rather than at the first request."""
        with contextlib.suppress(ConstraintError):  # a tokenizer that cannot be used is told to who asks for it
            self.compile(ConstraintSpec.json_object())
            self._started_builder().vocabulary.token_bytes.prepare()

    def compile(self, spec: ConstraintSpec) -> Constraint:
        """A fresh constraint for one answer.

        Raises:
            ConstraintError: it cannot be compiled, or nothing can match it.
        """
        builder = self._started_builder()
        with self._cache_lock:
            prototype = self._prototypes.get(spec.key)
            if prototype is not None:
                self._prototypes.move_to_end(spec.key)
        if prototype is None:
            prototype = builder.build(spec)
            self._remember(spec, prototype)

        def rebuild() -> LLMatcher:
            self._forget(spec, prototype)
            return builder.build(spec, is_urgent=True)

        keys = None if spec.keys is None else KeyGuard(spec.keys, builder.vocabulary.token_bytes)
        return Constraint(prototype.deep_copy(), builder.vocabulary, rebuild, keys)

    def _started_builder(self) -> "_Builder":
        with self._builder_lock:
            if self._builder is None:
                self._builder = _Builder(self._tokenizer_json, self._vocab_size, self._eos_token_ids)
            return self._builder

    def _remember(self, spec: ConstraintSpec, prototype: LLMatcher) -> None:
        with self._cache_lock:
            self._prototypes[spec.key] = prototype
            while len(self._prototypes) > self._cache_entries:
                self._prototypes.popitem(last=False)

    def _forget(self, spec: ConstraintSpec, prototype: LLMatcher) -> None:
        """Keep no prototype whose lexer has failed."""
        with self._cache_lock:
            if self._prototypes.get(spec.key) is prototype:
                del self._prototypes[spec.key]


class _Builder:
    """Builds matchers, one at a time, on threads whose stack is large enough for the deepest grammar."""

    def __init__(self, tokenizer_json: str, vocab_size: int, end_token_ids: Sequence[int]) -> None:
        """Read the tokenizer (0.3 s for 49,152 tokens) and start the threads."""
        if not end_token_ids:
            raise ConstraintError("the model names no end token; a constraint needs at least one to end an answer")
        end_id = min(end_token_ids)
        # With RUST_BACKTRACE=1, an error at the bottom of a deep grammar takes minutes: a trace for each of its levels.
        os.environ.setdefault("RUST_LIB_BACKTRACE", "0")
        try:
            self._tokenizer = LLTokenizer(tokenizer_json, eos_token=end_id)
        except ValueError as error:
            raise ConstraintError(f"constraints cannot use this tokenizer: {one_line(str(error))}") from error
        self.vocabulary = Vocabulary(self._tokenizer, vocab_size, end_token_ids, end_id)
        self._thread, self._urgent_thread = _deep_thread(), _deep_thread()

    def build(self, spec: ConstraintSpec, *, is_urgent: bool = False) -> LLMatcher:
        """A matcher at its beginning. is_urgent: do not wait for others, for an engine does.

        Raises:
            ConstraintError: there is none for this spec.
        """
        thread = self._urgent_thread if is_urgent else self._thread
        return thread.submit(self._build, spec).result()

    def _build(self, spec: ConstraintSpec) -> LLMatcher:
        matcher, error = self._matcher(spec.lark, spec.kind)
        if error is not None:
            place, inner = place_at_fault(spec.schemas, lambda lark: self._matcher(lark, spec.kind)[1])
            raise ConstraintError(f"{spec.kind} cannot be compiled: {place}{inner or error}")
        return matcher

    def _matcher(self, lark: str, kind: str) -> tuple[LLMatcher, str | None]:
        """A matcher and why it is none."""
        # As a list of one grammar: a text that begins with a brace would be read as such a list itself.
        grammar = json.dumps({"grammars": [{"lark_grammar": lark + _OPTIONS}]})
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=_limits(kind))
        if not matcher.is_error():
            matcher.compute_bitmask()  # finds what nothing can match, and what is too complex from the start
        return matcher, one_line(matcher.get_error()) if matcher.is_error() else None


def _deep_thread() -> ThreadPoolExecutor:
    """One thread with a large stack. Threads that others start meanwhile get one too; it is only address space."""
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="constraint")
    usual_bytes = threading.stack_size(_BUILDER_STACK_BYTES)
    try:
        thread.submit(int).result()  # starts it
    finally:
        threading.stack_size(usual_bytes)
    return thread


def _limits(kind: str) -> LLParserLimits:
    """Bounds on a constraint's time and memory.

    Sizes are in symbols: an Earley row is checked only once it is complete, which
    takes time quadratic in the grammar's size, so a grammar written by hand has less than a generated one.
    """
    return LLParserLimits(
        initial_lexer_fuel=500_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_items_in_row=5_000,  # 1,000 optional properties have 4,000
        max_lexer_states=_MOST_LEXER_STATES,
        max_grammar_size=_MOST_WRITTEN_SYMBOLS if kind == "grammar" else _MOST_GENERATED_SYMBOLS,
        verbose_errors=False,
    )
