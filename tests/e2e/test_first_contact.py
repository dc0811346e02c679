"""What a newcomer tries first: one command with a checkpoint, a pipe, a conversation at a terminal."""

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from model.bundle import Bundle
from tests.support.server import attend_command, run_attend, running_server
from tests.support.tiny_checkpoint import write_tiny_checkpoint

DEADLINE_S = 60.0
FEW = ("--max-tokens", "4")


class Terminal:
    """An `attend` command at a terminal of its own."""

    def __init__(self, process: "subprocess.Popen[bytes]", screen: int) -> None:
        self.process = process
        self._screen = screen
        self.text = b""

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._screen, text.encode())

    def wait_for(self, part: bytes, *, since: int = 0) -> int:
        """Read the screen until it shows `part` behind position `since`; return the position behind it."""
        deadline_s = time.monotonic() + DEADLINE_S
        while (found := self.text.find(part, since)) < 0:
            assert time.monotonic() < deadline_s, self.text
            if select.select([self._screen], [], [], 0.1)[0]:
                self.text += os.read(self._screen, 4096)
        return found + len(part)


@contextmanager
def at_a_terminal(*arguments: str | Path) -> Iterator[Terminal]:
    """Start `attend` at a pseudo-terminal; it is ended at the end."""
    screen, keyboard = pty.openpty()
    process = subprocess.Popen(
        attend_command(*arguments), stdin=keyboard, stdout=keyboard, stderr=keyboard, start_new_session=True
    )
    os.close(keyboard)
    try:
        yield Terminal(process, screen)
    finally:
        process.kill()
        process.wait()
        os.close(screen)


def test_a_checkpoint_is_served_by_one_command_that_says_what_it_serves(tmp_path: Path) -> None:
    """Exported into the cache; the process that serves has no torch in it."""
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny-llama")
    options = ("--standalone", "--cache-dir", tmp_path / "cache", "--precision", "fp32", "--max-num-rows", "3")
    with running_server(checkpoint, *options) as server:
        assert "tracing 2 layers" in server.output
        serving, ready = server.output.splitlines()[-2:]
        expected = rf"attend: serving tiny-llama at {server.url}: precision fp32, context 256 tokens, 3 rows, "
        assert re.match(expected + r"as many threads as usable cores \(\d+\), API keys off$", serving)
        assert re.fullmatch(rf"attend: ready at {server.url} \(standalone\) in \d+\.\d s", ready)
        assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()
        body = {"prompt": "hello", "max_tokens": 3}
        assert httpx.post(f"{server.url}/v1/generate", json=body).status_code == 200
    with running_server(checkpoint, *options) as server:
        assert "tracing" not in server.output


def test_two_that_need_the_same_bundle_make_it_once(tmp_path: Path) -> None:
    """The second says that it waits, and both answer the same."""
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny-llama")
    command = attend_command(
        "generate", "hello", "--model", checkpoint, "--precision", "fp32", "--cache-dir", tmp_path / "cache", *FEW
    )
    both = [
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
        )
        for _ in range(2)
    ]
    ended = [process.communicate(timeout=2 * DEADLINE_S) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    assert ended[0][0] == ended[1][0]
    assert sorted("tracing" in err for _, err in ended) == [False, True]
    assert sorted("waiting for another process" in err for _, err in ended) == [False, True]


def test_whoever_ends_a_first_start_ends_its_export_too(tmp_path: Path) -> None:
    """A supervisor knows one process; no other goes on behind its back."""
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny-llama")
    command = attend_command("serve", checkpoint, "--standalone", "--cache-dir", tmp_path / "cache")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "reading the weights" not in process.stderr.readline():
            assert process.poll() is None
        (export,) = psutil.Process(process.pid).children()
        process.terminate()
        rest = process.stderr.read()
        assert process.wait(DEADLINE_S) == 128 + signal.SIGTERM
    assert "Traceback" not in rest
    assert not export.is_running()


def test_a_bundle_and_a_variable_name_the_same_model(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways that there are, and two at a time are refused."""
    said = run_attend("generate", "hello", "--model", tiny_bundle.path, *FEW)
    assert said.returncode == 0, said.stderr
    assert run_attend("generate", "hello", "--bundle", tiny_bundle.path, *FEW).stdout == said.stdout
    monkeypatch.setenv("ATTEND_BUNDLE", str(tiny_bundle.path))
    assert run_attend("generate", "hello", *FEW).stdout == said.stdout
    refused = run_attend("generate", "hello", "--model", "default", *FEW)
    assert refused.stderr.startswith("attend: the source default and the bundle")


def test_a_prompt_may_come_in_a_pipe(tiny_bundle: Bundle) -> None:
    """With a dash or nothing; without the newline that `echo` adds."""
    options = ("--model", tiny_bundle.path, *FEW)
    said = run_attend("generate", "hello", *options)
    assert said.stderr == "attend: the answer is cut after 4 tokens; --max-tokens allows more\n"
    for arguments in (("-",), ()):
        assert run_attend("generate", *arguments, *options, stdin="hello\n").stdout == said.stdout
    assert "standard input is empty" in run_attend("generate", "-", *options).stderr


def test_a_conversation_may_come_in_a_pipe(tiny_bundle: Bundle) -> None:
    """A line is a message; nothing but answers on stdout."""
    first = run_attend("generate", "hello", "--model", tiny_bundle.path, *FEW).stdout
    folder = str(tiny_bundle.path)
    for command in (["chat", folder], ["generate", "--chat", "--model", folder]):
        said = run_attend(*command, *FEW, stdin="hello\nand?\n/exit\nnever\n")
        assert said.returncode == 0, said.stderr
        assert said.stdout.startswith(first)
        assert len(said.stderr.splitlines()) == 2, "two answers, both cut"


def test_at_a_terminal_ctrl_c_ends_the_answer_and_ctrl_d_the_conversation(tiny_bundle: Bundle) -> None:
    """As a person expects."""
    with at_a_terminal("chat", tiny_bundle.path, "--max-tokens", "250") as terminal:
        shown = terminal.wait_for(b"> ")
        terminal.type("hello\n")
        shown = terminal.wait_for(b"hello\r\n", since=shown)
        time.sleep(0.05)  # into the answer, or before or behind it: it must not matter
        os.killpg(terminal.process.pid, signal.SIGINT)
        shown = terminal.wait_for(b"> ", since=shown)
        assert terminal.process.poll() is None
        terminal.type("/exit\n")
        assert terminal.process.wait(DEADLINE_S) == 0


def test_the_default_model_comes_to_an_end_by_itself(default_bundle: Bundle) -> None:
    """One answer, not the same again until a limit."""
    cache_dir = default_bundle.path.parents[1]
    said = run_attend("generate", "Name the capital of France.", "--cache-dir", cache_dir)
    assert said.returncode == 0, said.stderr
    assert "Paris" in said.stdout
    assert said.stderr == ""
