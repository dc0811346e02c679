"""Where downloads and bundles go when nobody says."""

from pathlib import Path

import pytest

from service.settings import Settings, default_cache_dir


@pytest.mark.parametrize(
    ("variables", "expected", "reason"),
    [
        ({"HOME": "/home/ann"}, "/home/ann/.cache/attend", "the usual place"),
        ({"HOME": "/home/ann", "XDG_CACHE_HOME": "/fast"}, "/fast/attend", "the user's own choice"),
        ({"HOME": "/home/ann", "XDG_CACHE_HOME": ""}, "/home/ann/.cache/attend", "empty is unset, says XDG"),
        ({"HOME": "/home/ann", "XDG_CACHE_HOME": "c"}, "/home/ann/.cache/attend", "relative is ignored, says XDG"),
        ({"XDG_CACHE_HOME": "/fast"}, "/fast/attend", "no home is needed then"),
        ({}, ".cache/attend", "a container's user without a home"),
    ],
    ids=["home", "xdg", "empty xdg", "relative xdg", "xdg alone", "neither"],
)
def test_outside_a_checkout_it_is_the_users_cache(
    variables: dict[str, str], expected: str, reason: str, tmp_path: Path
) -> None:
    """An installed wheel leaves nothing in whatever folder it is called from."""
    assert default_cache_dir(variables, code=tmp_path) == Path(expected), reason


def test_in_a_checkout_it_lies_in_the_checkout(tmp_path: Path) -> None:
    """`make clean` finds it, wherever the command was called from."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "Makefile").touch()
    assert default_cache_dir({"HOME": "/home/ann"}, code=tmp_path) == tmp_path / ".cache/attend"


def test_the_variable_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the Makefile sets it."""
    monkeypatch.setenv("ATTEND_CACHE_DIR", "/elsewhere")
    assert Settings().cache_dir == Path("/elsewhere")
