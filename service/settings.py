"""Settings: every knob of the service, with its unit and range.

The only reader of the environment (``ATTEND_*``); the command line passes the same names as overrides.
Kept apart so that every other module takes plain values and can be tested without an environment.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from model.precision import DEFAULT_PRECISION, PrecisionName

PREFIX = "ATTEND_"
HOME_FOLDER = Path(__file__).resolve().parents[1]  # of the code: a checkout, or where packages are installed


def default_cache_dir(environment: Mapping[str, str] | None = None, code: Path = HOME_FOLDER) -> Path:
    """`.cache/attend` of the checkout that the code lies in; without one the user's own cache folder.

    That is `$XDG_CACHE_HOME/attend` (if absolute, as the XDG base directory specification asks) or `~/.cache/attend`;
    for a user without a home, as in some containers, `.cache/attend` below the current folder.
    """
    variables = os.environ if environment is None else environment
    if (code / "pyproject.toml").is_file() and (code / "Makefile").is_file():
        return code / ".cache/attend"
    given, home = Path(variables.get("XDG_CACHE_HOME", "")), Path(variables.get("HOME", ""))
    if given.is_absolute():
        return given / "attend"
    return home / ".cache/attend" if home.is_absolute() else Path(".cache/attend")


ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^\s/*?#@]+", re.IGNORECASE)
DEFAULT_PORTS = {"http": 80, "https": 443}


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Variables that look like settings and are none: most likely misspelt, and pydantic would ignore them."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    return sorted(name for name in environment if name.upper().startswith(PREFIX) and name.upper() not in known)


class Settings(BaseSettings):
    """Frozen configuration of one `attend serve`. Units stand in the names; ranges are enforced."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    source: str | None = Field(
        default=None,
        description="Model to serve: `default`, a Hugging Face folder, a .gguf file, hf:org/name, or a bundle folder.",
    )
    bundle: Path | None = Field(
        default=None, description="Bundle folder written by `attend export`, instead of a source."
    )
    precision: PrecisionName | None = Field(
        default=None, description=f"Precision to export the source at; unset: {DEFAULT_PRECISION}."
    )
    served_model_name: str | None = Field(
        default=None,
        description="Names of the model for clients, comma-separated; answers say the first. Unset: the bundle's own.",
    )
    cache_dir: Path = Field(
        default_factory=default_cache_dir, description="Folder of downloads, exported bundles and prepared graphs."
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=1, le=65535, description="TCP port to listen on.")
    replicas: int = Field(default=1, ge=1, le=256, description="Copies of the model served by Ray Serve.")
    threads: int = Field(
        default=0, ge=0, le=512, description="Threads of one ONNX session; 0: the cores it may use, or has reserved."
    )
    max_num_rows: int = Field(default=16, ge=1, le=256, description="Requests decoded together in one step.")
    max_context_tokens: int = Field(
        default=0, ge=0, description="Prompt plus answer of one request, tokens; 0: what the model allows."
    )
    prefill_chunk_tokens: int = Field(
        default=256, ge=8, le=8192, description="Most prompt tokens computed in one step."
    )
    max_waiting_requests: int = Field(
        default=256, ge=1, le=100_000, description="Requests that may wait; one more is answered 429."
    )
    max_waiting_tokens: int = Field(
        default=1_000_000, ge=1, description="Prompt tokens that may wait in all; more are answered 429."
    )
    kv_budget_bytes: int = Field(
        default=0, ge=0, description="Most memory for keys and values, bytes; 0: half of the free memory at the start."
    )
    prefix_cache_bytes: int = Field(
        default=256 << 20, ge=0, description="Memory for prompts already computed, shared by requests; 0: off, bytes."
    )
    starvation_s: float = Field(
        default=30.0, ge=0, le=3600, description="A request that waited longer goes before all others, seconds."
    )
    cors_origins: str | None = Field(
        default=None,
        description="Web pages that may call: origins, comma-separated, each scheme://host[:port]; *: any.",
    )
    max_body_bytes: int = Field(
        default=4 << 20, ge=1024, le=1 << 30, description="Largest request body accepted, bytes."
    )
    unknown_fields: Literal["refuse", "ignore"] = Field(
        default="refuse",
        description="What becomes of fields that nobody knows: 400, or accepted and named in x-attend-ignored-fields.",
    )
    api_keys: SecretStr | None = Field(
        default=None,
        description="API keys, comma-separated, each KEY or NAME:KEY; without any, everybody may call.",
    )
    api_keys_file: Path | None = Field(
        default=None, description="File of API keys, one per line, each KEY or NAME:KEY."
    )
    max_requests_per_minute: int = Field(default=0, ge=0, description="Of each API key; more are answered 429; 0: any.")
    max_tokens_per_minute: int = Field(
        default=0, ge=0, description="Of each API key, prompts and answers; more are answered 429; 0: any."
    )
    max_concurrent_requests: int = Field(
        default=0, ge=0, description="Of each API key at a time; more are answered 429; 0: any."
    )
    cache_per_key: bool = Field(default=False, description="Whether API keys share no computed prompts.")
    request_timeout_s: float = Field(
        default=0.0, ge=0, le=86400, description="A request not complete by then ends with an error, seconds; 0: never."
    )
    open_objects: bool = Field(
        default=False,
        description="Whether an object that lists properties may add others, where its schema does not say.",
    )
    log_requests: bool = Field(default=False, description="Write a line of JSON for each request to standard error.")
    drain_timeout_s: float = Field(
        default=30.0, ge=0, le=3600, description="Longest wait for running requests at shutdown, seconds."
    )
    stall_timeout_s: float = Field(
        default=60.0, gt=0, le=3600, description="A step longer than this makes /health answer 503, seconds."
    )

    @field_validator("served_model_name")
    @classmethod
    def _names_can_be_sent(cls, value: str | None) -> str | None:
        """Refuse a list without names, with an empty one, or with one that no address can hold."""
        if value is not None and not all(name.strip() and name.strip().isprintable() for name in value.split(",")):
            raise ValueError("give one name or several with commas between them, such as my-model,gpt-4o-mini")
        for name in (value or "-").split(","):
            if "//" in f"/{name.strip()}/":
                raise ValueError(f"{name.strip()!r} begins or ends with a slash or has two together; write org/name")
        return value

    @property
    def served_model_names(self) -> tuple[str, ...]:
        """The names in `served_model_name`, each once; empty where the bundle's own name is served."""
        names = (self.served_model_name or "").split(",")
        return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))

    @property
    def origins(self) -> tuple[str, ...]:
        """The origins of `cors_origins`, as browsers spell them."""
        listed = (self.cors_origins or "").split(",")
        return tuple(_browsers_spelling(origin) for origin in listed if origin.strip())

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: str | None) -> str | None:
        for origin in (value or "").split(","):
            if not origin.strip():
                continue
            try:
                _browsers_spelling(origin)
            except ValueError as error:
                raise ValueError(
                    f"{origin.strip()!r} is no origin; write scheme://host[:port] without a path, or *"
                ) from error
        return value


def _browsers_spelling(origin: str) -> str:
    """An origin in lower case, its host as DNS has it, without the port that its scheme has anyway.

    Raises:
        ValueError: it is no origin.
    """
    plain = origin.strip().lower().removesuffix("/")
    if not ORIGIN.fullmatch(plain):
        raise ValueError("not scheme://host[:port]")
    scheme, _, place = plain.partition("://")
    if scheme not in DEFAULT_PORTS:
        return plain
    port = urlsplit(plain).port  # ValueError where it is no port
    host = re.sub(r":\d*$", "", place)
    if not host.startswith("["):
        host = host.encode("idna").decode()  # UnicodeError is a ValueError
    if not host:
        raise ValueError("no host")
    return f"{scheme}://{host}" + ("" if port in (None, DEFAULT_PORTS[scheme]) else f":{port}")
