"""One line that says what a service is about to serve: where, which model, how much of it, and who may call.

Separate from both servers, with Ray and without, because they say the same.
"""

from model.bundle import Bundle
from model.processors import usable_cores
from service.ports import base_url
from service.settings import Settings


def start_line(bundle: Bundle, settings: Settings, *, has_keys: bool) -> str:
    """The line, without the service's name before it. has_keys: whether calls need an API key."""
    context = min(bundle.config.context_tokens, settings.max_context_tokens or bundle.config.context_tokens)
    facts = [
        f"precision {bundle.manifest.precision}",
        f"context {context} tokens",
        _count(settings.max_num_rows, "row"),
        _threads(settings.threads),
        f"API keys {'on' if has_keys else 'off'}",
    ]
    name = (settings.served_model_names or (bundle.config.model_id,))[0]
    return f"serving {name} at {base_url(settings.host, settings.port)}: {', '.join(facts)}"


def _threads(threads: int) -> str:
    """The setting, or how many cores it means."""
    if threads:
        return _count(threads, "thread")
    return f"as many threads as usable cores ({usable_cores()})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
