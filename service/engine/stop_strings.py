"""StopStrings: finds stop strings in text that arrives in pieces, and holds back what may be the start of one.

Separate from the engine because it is text matching and nothing else.
"""

from collections.abc import Sequence


class StopStrings:
    """Feeds text through; what comes out never contains a stop string nor the start of one that then completes.

    With `is_included` it does end with the stop string that was met.
    """

    def __init__(self, strings: Sequence[str], *, is_included: bool = False) -> None:
        """strings: none of them empty."""
        self._strings = tuple(strings)
        self._is_included = is_included
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Add text; return what may be shown and the stop string that was met (the earliest one ends the text)."""
        if not self._strings:
            return text, None
        self._held += text
        found = [(position, string) for string in self._strings if (position := self._held.find(string)) >= 0]
        if found:
            position, string = min(found)
            shown, self._held = self._held[:position], ""
            return shown + string if self._is_included else shown, string
        keep = self._longest_start()
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, None

    def flush(self) -> str:
        """What is still held when the answer ends without a stop string."""
        held, self._held = self._held, ""
        return held

    def _longest_start(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max(len(string) for string in self._strings) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(string.startswith(self._held[-length:]) for string in self._strings):
                return length
        return 0
