"""What one caller may ask of the service in a minute and at a time.

Separate from the queue's limits, which protect the engine from everybody together: these protect callers from each
other. Knows no HTTP; `errors.py` decides the status. Everything here runs on the event loop's thread and never awaits,
so it needs no locks.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

LimitKind = Literal["requests_per_minute", "tokens_per_minute", "concurrent_requests"]

MINUTE_S = 60.0
CONCURRENCY_RETRY_S = 1.0  # nobody knows when a running request will end
ROUNDING = 1e-6  # of one request: a caller that waited as long as it was told is not refused for a float's last digit


@dataclass(frozen=True)
class Limits:
    """Of each caller; 0 means no limit. Tokens are those of prompts and answers together."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrent_requests: int = 0

    def __post_init__(self) -> None:
        values = (self.requests_per_minute, self.tokens_per_minute, self.concurrent_requests)
        assert min(values) >= 0, f"limits are 0 or more: {values}"


class RateLimitedError(Exception):
    """A request over a limit. kind: the field of `Limits`; retry_after_s: seconds, above 0, until it is worth a try."""

    def __init__(self, kind: LimitKind, limit: int, retry_after_s: float) -> None:
        self.kind: LimitKind = kind
        self.retry_after_s = retry_after_s
        self.message = (
            f"the limit of {limit} {kind.replace('_', ' ')} for each caller is reached; "
            f"try again in {math.ceil(retry_after_s)} s"
        )
        super().__init__(self.message)


@dataclass
class _Bucket:
    """A token bucket that holds one minute's worth, refilled continuously. per_minute: 0 for one that is never empty.

    `balance` counts what may still be taken; below 0, what must flow in first.
    """

    per_minute: int
    updated_s: float
    balance: float = field(init=False)

    def __post_init__(self) -> None:
        self.balance = self._capacity

    @property
    def _capacity(self) -> float:
        return self.per_minute or math.inf

    def refill(self, now_s: float) -> None:
        """Bring the balance to now."""
        gained = (now_s - self.updated_s) * self.per_minute / MINUTE_S
        self.balance = min(self._capacity, self.balance + gained)
        self.updated_s = now_s

    def wait_s(self) -> float:
        """Seconds until the balance is 1. Not for a bucket that is never empty."""
        return (1 - self.balance) * MINUTE_S / self.per_minute


class _Account:
    """What one caller has left."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        now_s = clock()
        self.requests = _Bucket(limits.requests_per_minute, now_s)
        self.tokens = _Bucket(limits.tokens_per_minute, now_s)
        self.num_running = 0
        self._clock = clock

    def refill(self) -> None:
        """Bring both balances to now."""
        now_s = self._clock()
        self.requests.refill(now_s)
        self.tokens.refill(now_s)

    def charge_tokens(self, num_tokens: int) -> None:
        """Take tokens, also ones that are not there."""
        assert num_tokens >= 0, f"num_tokens is {num_tokens}"
        self.refill()  # first, as what would flow over is lost
        self.tokens.balance -= num_tokens


class Lease:
    """One admitted request: charge it for what it generates, and release it when it has ended. A context manager."""

    def __init__(self, account: _Account) -> None:
        """Take a slot of the account, until `release`."""
        self._account = account
        self._is_released = False
        account.num_running += 1

    def charge(self, num_tokens: int) -> None:
        """Pay for generated tokens; the balance may become negative. Works after the release, too."""
        self._account.charge_tokens(num_tokens)

    def release(self) -> None:
        """Free the slot. Only the first call does."""
        if not self._is_released:
            self._is_released = True
            self._account.num_running -= 1

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class Limiter:
    """Admits requests by caller's name. Keeps one account a name: names are those of API keys, so they are few."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: monotonic seconds."""
        self._limits = limits
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    def admit(self, name: str, num_tokens: int) -> Lease:
        """Charge one request and its prompt's tokens to `name`; the lease must be released.

        A prompt needs a balance above 0, not one as large as itself: what is larger than a minute's worth can be
        served from a full bucket, and its caller waits afterwards. A refused request is charged nothing.

        Raises:
            RateLimitedError: of the limits that refuse it, the one that does so longest.
        """
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = _Account(self._limits, self._clock)
        account.refill()
        if refusals := list(self._refusals(account)):
            raise max(refusals, key=lambda refusal: refusal.retry_after_s)
        account.requests.balance -= 1
        account.charge_tokens(num_tokens)
        return Lease(account)

    def _refusals(self, account: _Account) -> Iterator[RateLimitedError]:
        """Each limit that allows no request now."""
        limits = self._limits
        if 0 < limits.concurrent_requests <= account.num_running:
            yield RateLimitedError("concurrent_requests", limits.concurrent_requests, CONCURRENCY_RETRY_S)
        if account.requests.balance < 1 - ROUNDING:
            yield RateLimitedError("requests_per_minute", limits.requests_per_minute, account.requests.wait_s())
        if account.tokens.balance <= 0:
            yield RateLimitedError("tokens_per_minute", limits.tokens_per_minute, account.tokens.wait_s())
