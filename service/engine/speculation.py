"""PromptLookup: guesses a request's next tokens from its own text (prompt lookup decoding, Saxena 2023).

Where the last few tokens have stood before, what followed them is a likely continuation: answers that quote, summarise
or edit their prompt repeat it. A draft costs nothing to make; the model verifies it in one run, and what it would not
have chosen is thrown away, so the distribution is the model's own. Drafts begin short and grow while they are kept
whole; those that keep failing are paused for longer and longer stretches. All of it depends on the request's own
tokens, never on load.
"""

from collections.abc import Sequence

NGRAM_TOKENS = 3  # fewer match by chance, more miss what was repeated with a change
FIRST_DRAFT_TOKENS = 3  # with the token before them a run of 4, which costs 1.5 times a run of 1 on a CPU
MAX_DRAFT_TOKENS = 15  # a run of 16 costs 4 times a run of 1
MIN_ACCEPTANCE = 0.25  # of drafted tokens; below, verifying costs more than it saves
FIRST_PAUSE_TOKENS = 16
MAX_PAUSE_TOKENS = 256
MEMORY = 0.7  # weight of earlier drafts in the running acceptance


class PromptLookup:
    """Drafts for one request. Feed it the outcome of every token; it reads the request's growing lists."""

    def __init__(self, num_draft_tokens: int = MAX_DRAFT_TOKENS) -> None:
        """num_draft_tokens: most tokens of one draft, 1 to MAX_DRAFT_TOKENS.

        Raises:
            ValueError: out of range.
        """
        if not 1 <= num_draft_tokens <= MAX_DRAFT_TOKENS:
            raise ValueError(f"num_draft_tokens is {num_draft_tokens}; it must be from 1 to {MAX_DRAFT_TOKENS}")
        self.num_draft_tokens = num_draft_tokens
        self.num_drafted = 0
        self.num_accepted = 0
        self._ids: list[int] = []
        self._follows: dict[tuple[int, ...], int] = {}  # an n-gram -> where its latest occurrence is followed
        self._length = min(FIRST_DRAFT_TOKENS, num_draft_tokens)
        self._acceptance = 2 * MIN_ACCEPTANCE
        self._pause_tokens = FIRST_PAUSE_TOKENS
        self._resume_at = 0  # number of tokens, prompt included, from which drafts are made again

    def draft(self, prompt_ids: Sequence[int], generated_ids: Sequence[int]) -> tuple[int, ...]:
        """What may come next; empty if nothing like the last tokens has stood before, or while paused."""
        self._index(prompt_ids, generated_ids)
        if len(self._ids) < self._resume_at:
            return ()
        start = self._follows.get(tuple(self._ids[-NGRAM_TOKENS:]))
        return () if start is None else tuple(self._ids[start : start + self._length])

    def observe(self, num_drafted: int, num_accepted: int) -> None:
        """Learn how a draft did."""
        self.num_drafted += num_drafted
        self.num_accepted += num_accepted
        self._acceptance = MEMORY * self._acceptance + (1 - MEMORY) * num_accepted / num_drafted
        longest = 2 * self._length + 1 if num_accepted == num_drafted else max(num_accepted, FIRST_DRAFT_TOKENS)
        self._length = min(longest, self.num_draft_tokens)
        if self._acceptance < MIN_ACCEPTANCE:
            self._resume_at = len(self._ids) + self._pause_tokens
            self._pause_tokens = min(2 * self._pause_tokens, MAX_PAUSE_TOKENS)
            self._acceptance = 2 * MIN_ACCEPTANCE  # a few drafts more to prove itself after the pause
        elif num_accepted == num_drafted:
            self._pause_tokens = FIRST_PAUSE_TOKENS

    def _index(self, prompt_ids: Sequence[int], generated_ids: Sequence[int]) -> None:
        """Take in the tokens that are new. An n-gram counts once a token has followed it."""
        known = len(self._ids)
        new_ids = [*prompt_ids, *generated_ids] if known == 0 else generated_ids[known - len(prompt_ids) :]
        self._ids.extend(new_ids)
        for end in range(max(known, NGRAM_TOKENS), len(self._ids)):
            self._follows[tuple(self._ids[end - NGRAM_TOKENS : end])] = end
