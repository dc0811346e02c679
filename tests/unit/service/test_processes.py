"""Work in the background of the driver: its result, its error."""

import threading

import pytest

from service.processes import in_background


def test_work_runs_in_another_thread_and_its_end_is_told() -> None:
    """The caller goes on meanwhile, and the future says when the work is done."""
    may_end, threads = threading.Event(), list[threading.Thread]()

    def work() -> None:
        threads.append(threading.current_thread())
        may_end.wait()

    future = in_background(work)
    assert not future.done()
    may_end.set()
    future.result(timeout=5)
    assert threads[0] is not threading.current_thread()
    assert threads[0].daemon, "a stop must not wait for it"


def test_an_error_of_the_work_is_raised_where_its_result_is_asked_for() -> None:
    """As it was, whatever its type."""

    def work() -> None:
        raise SystemExit("no cluster")

    with pytest.raises(SystemExit, match="no cluster"):
        in_background(work).result(timeout=5)
