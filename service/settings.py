"""Settings: every knob of the service, with its unit and range.

The only reader of the environment (``ATTEND_*``); the command line passes the same names as overrides.
Kept apart so that every other module takes plain values and can be tested without an environment.
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "ATTEND_"


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Variables that look like settings and are none: most likely misspelt, and pydantic would ignore them."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    return sorted(name for name in environment if name.upper().startswith(PREFIX) and name.upper() not in known)


class Settings(BaseSettings):
    """Frozen configuration of one `attend serve`. Units stand in the names; ranges are enforced."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    bundle: Path | None = Field(
        default=None, description="Bundle folder written by `attend export`; unset: the default model's bundle."
    )
    cache_dir: Path = Field(
        default=Path(".cache/attend"), description="Where downloads, default bundles and prepared graphs are kept."
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=1, le=65535, description="TCP port to listen on.")
    replicas: int = Field(default=1, ge=1, le=256, description="Copies of the model served by Ray Serve.")
    threads: int = Field(default=0, ge=0, le=512, description="Threads of one ONNX session; 0: the processor's cores.")
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
    max_body_bytes: int = Field(
        default=4 << 20, ge=1024, le=1 << 30, description="Largest request body accepted, bytes."
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
