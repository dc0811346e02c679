"""However a command line is wrong, and whatever a user can cause: one line, a non-zero exit, no traceback."""

import importlib.metadata
import pkgutil
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest

import model
import service
from model.errors import UserError
from service.cli import main as main_function
from tests.support.terminal import Ended, run_here

main_module = sys.modules[main_function.__module__]
Run = Callable[..., Ended]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `attend` here."""
    return lambda *arguments: run_here(monkeypatch, capsys, *arguments)


def assert_one_line(ended: Ended, status: int, part: str) -> None:
    """Nothing on stdout, one line on stderr that says `part`."""
    assert ended.status == status
    assert ended.stdout == ""
    assert ended.stderr.startswith("attend: ")
    assert ended.stderr.count("\n") == 1
    assert part in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "part", "reason"),
    [
        (["sreve"], "No such command 'sreve'. Did you mean 'serve'?; `attend --help`", "a mistyped command"),
        (
            ["bench", "engin"],
            "No such command 'engin'. Did you mean 'engine'?; `attend bench --help`",
            "a mistyped command of a group",
        ),
        (["serve", "--prot", "1"], "No such option: --prot", "a mistyped option"),
        (["--verison"], "No such option: --verison", "a mistyped option of the command itself"),
        (["export"], "Missing argument 'SOURCE'", "nothing to export"),
        (["serve", "a", "b"], "unexpected extra argument", "two sources"),
        (["generate", "x", "--seed"], "--seed", "an option without its value"),
        (["generate", "x", "--max-tokens", "0"], "--max-tokens", "a number out of range"),
        (["generate", "x", "--max-tokens", "many"], "--max-tokens", "no number"),
        (["generate", "x", "--temperature", "3"], "--temperature", "a number out of range"),
        (["bench", "stall", "--chunk-tokens", "1"], "--chunk-tokens", "a number out of range"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_line(run: Run, arguments: list[str], part: str, reason: str) -> None:
    """No box, no usage, but where the right ones are listed."""
    ended = run(*arguments)
    assert_one_line(ended, 2, part)
    assert "--help` lists" in ended.stderr, reason


@pytest.mark.parametrize(
    ("arguments", "part", "reason"),
    [
        (["serve", "--port", "99999"], "--port (ATTEND_PORT) is '99999'", "a setting out of range"),
        (["serve", "--port", "http"], "--port (ATTEND_PORT) is 'http'", "a setting of another kind"),
        (["serve", "--precision", "int3"], "--precision (ATTEND_PRECISION) is 'int3'", "an unknown choice"),
        (["serve", "x", "--bundle", "y"], "both given", "two models"),
        (["generate", "x", "--model", "x", "--bundle", "y"], "both given", "two models"),
        (["generate", "x", "--precision", "int3"], "choose fp32 or", "an unknown choice"),
        (["generate", "x", "--top-p", "0"], "top_p is 0", "a number that sampling refuses"),
        (["generate", "x", "--raw", "--system", "y"], "--system needs the chat template", "options that exclude"),
        (["generate", "--raw", "--chat"], "--chat needs the chat template", "options that exclude"),
        (["chat", "nowhere"], "cannot read 'nowhere'", "a model that is not there"),
        (["bench", "engine", "--model", "nowhere"], "cannot read 'nowhere'", "a model that is not there"),
    ],
)
def test_values_that_cannot_be_used_are_one_line(run: Run, arguments: list[str], part: str, reason: str) -> None:
    """What was given, and what is allowed."""
    ended = run(*arguments)
    assert ended.status == 1, reason
    assert_one_line(ended, 1, part)


def user_errors() -> Iterator[type[Exception]]:
    """Every exception of ours that a user can cause."""
    for package in (model, service):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                __import__(module.name)
    pending = [UserError]
    while pending:
        yield (found := pending.pop())
        pending += found.__subclasses__()


def raising(error: BaseException) -> Callable[[], Any]:
    """A command that fails so."""

    def build() -> Callable[..., NoReturn]:
        def command(**_options: object) -> NoReturn:
            raise error

        return command

    return build


def test_every_error_that_a_user_can_cause_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a base class: a new one needs no entry in a list."""
    names = {found.__name__ for found in user_errors()}
    assert {"BundleError", "ChatTemplateError", "CheckpointError", "DecoderError", "ExportError"} <= names
    assert {"BenchError", "InvalidRequestError", "KeyRingError", "ServeError", "SourceError"} <= names
    for found in user_errors():
        monkeypatch.setattr(main_module, "build_app", raising(found.__new__(found, "two\nlines")))
        assert_one_line(run(), 1, "two lines")


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (PermissionError(13, "Permission denied", "/x"), "Permission denied: '/x'"),
        (MemoryError(), "MemoryError"),
        (ModuleNotFoundError("no", name="torch"), "install it with `pip install 'attend[export]'`"),
        (ModuleNotFoundError("no", name="onnxruntime"), "install it with `pip install 'attend[cpu]'`"),
        (ModuleNotFoundError("no", name="uvicorn.config"), "'uvicorn' is missing"),
    ],
    ids=["disk", "permission", "memory", "torch", "onnxruntime", "another module"],
)
def test_what_the_machine_lacks_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, part: str
) -> None:
    """Disk, rights, memory, packages."""
    monkeypatch.setattr(main_module, "build_app", raising(error))
    assert_one_line(run(), 1, part)


def test_a_bug_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback is what a report needs."""
    monkeypatch.setattr(main_module, "build_app", raising(KeyError("ours")))
    with pytest.raises(KeyError):
        run_here(monkeypatch, capsys)


def test_the_version_names_the_runtime_too(run: Run) -> None:
    """Half of all reports are about it."""
    ended = run("--version")
    assert ended.status == 0
    assert ended.stdout.startswith(f"attend {importlib.metadata.version('attend')} (onnxruntime")


def test_a_group_alone_is_help(run: Run) -> None:
    """Nothing was done, so the status is not 0."""
    for arguments in ([], ["bench"]):
        ended = run(*arguments)
        assert ended.status == 2
        assert ended.stdout.startswith("Usage: attend")
        assert ended.stderr == ""
