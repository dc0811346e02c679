"""Place: where in a request's schemas something stands, so that an error names the tool and the property."""

from dataclasses import dataclass

from model.constraint.errors import ConstraintError, UnsatisfiableError

_MOST_NAME_CHARACTERS = 80


@dataclass(frozen=True)
class Place:
    """A schema inside another. label: the whole one, as people call it. path: from there, as a program would write."""

    label: str
    path: str = ""

    def __str__(self) -> str:
        """Short enough for a message of one line."""
        shown = self.path if len(self.path) <= _MOST_NAME_CHARACTERS else self.path[:_MOST_NAME_CHARACTERS] + "…"
        return f"{self.label}, property {shown!r}" if self.path else self.label

    def property(self, name: str) -> "Place":
        """The place of a property."""
        return Place(self.label, f"{self.path}.{name}" if self.path else name)

    def items(self) -> "Place":
        """The place of an array's items."""
        return Place(self.label, f"{self.path}[]")

    def error(self, problem: str) -> ConstraintError:
        """The error that something is wrong here."""
        return ConstraintError(f"{self}: {problem}")

    def unsatisfiable(self, reason: str) -> UnsatisfiableError:
        """The error that nothing can be written here."""
        return UnsatisfiableError(f"{self}: {reason}: nothing can match it")
