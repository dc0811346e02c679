"""`attend bench quality`: perplexity of bundles on the same text, and how often they agree with the first one.

The text is cut into windows of 512 tokens; every token but a window's first is scored given those before it.
Perplexity is exp of the mean negative log-likelihood (Jelinek et al. 1977).
"""

import pydoc_data.topics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.table import Table

from model.bundle import open_bundle
from model.decoder import Decoder
from model.kv_cache import KVCache
from model.tokenizer import Tokenizer

WINDOW_TOKENS = 512


class BenchError(ValueError):
    """A measurement that cannot be made; the message is one line."""


@dataclass(frozen=True)
class Score:
    """One bundle on one text. `log_likelihoods` and `choices` (the likeliest next token) are [N], N scored tokens."""

    name: str
    precision: str
    size_bytes: int
    log_likelihoods: npt.NDArray[np.float64]
    choices: npt.NDArray[np.int64]

    @property
    def perplexity(self) -> float:
        """Exponential of the mean negative log-likelihood per token."""
        return float(np.exp(-self.log_likelihoods.mean()))

    def agreement(self, reference: "Score") -> float:
        """Share of positions at which both would choose the same token."""
        return float((self.choices == reference.choices).mean())


def score_bundle(path: Path, text: str, max_tokens: int) -> Score:
    """Run a bundle over whole windows of a text.

    Raises:
        BundleError, DecoderError: it cannot be used.
        BenchError: the text is shorter than one window.
    """
    bundle = open_bundle(path)
    ids = np.array(Tokenizer(bundle.tokenizer_json).encode(text, add_special_tokens=False)[:max_tokens], np.int64)
    windows = ids[: len(ids) // WINDOW_TOKENS * WINDOW_TOKENS].reshape(-1, WINDOW_TOKENS)
    if not len(windows):
        raise BenchError(f"the text has {len(ids)} tokens; at least {WINDOW_TOKENS} are needed")
    decoder = Decoder(bundle, KVCache(bundle.config, 1, WINDOW_TOKENS))
    scores = [_score_window(decoder, window) for window in windows]
    return Score(
        name=path.name,
        precision=bundle.manifest.precision,
        size_bytes=sum(file.stat().st_size for file in path.iterdir()),
        log_likelihoods=np.concatenate([likelihoods for likelihoods, _ in scores]),
        choices=np.concatenate([choices for _, choices in scores]),
    )


def quality_table(
    paths: Sequence[Path], text_file: Path | None, max_tokens: int, say: Callable[[str], None] = lambda _: None
) -> Table:
    """Score each bundle and lay the results out against the first."""
    text = default_text() if text_file is None else _read_text(text_file)
    scores = []
    for path in paths:
        say(f"scoring {path}")
        scores.append(score_bundle(path, text, max_tokens))
    reference = scores[0]
    table = Table(title=f"{len(reference.choices)} scored tokens, windows of {WINDOW_TOKENS}")
    for column in ("bundle", "precision", "size MB", "perplexity", "vs first", "top-1 agreement"):
        table.add_column(column, justify="left" if column == "bundle" else "right")
    for score in scores:
        change = score.perplexity / reference.perplexity - 1
        table.add_row(
            score.name,
            score.precision,
            f"{score.size_bytes / 1e6:.0f}",
            f"{score.perplexity:.4f}",
            f"{change:+.2%}",
            f"{score.agreement(reference):.2%}",
        )
    return table


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BenchError(f"{file} is not UTF-8 text") from None


def default_text() -> str:
    """English prose on every machine with Python: its language reference."""
    topics = pydoc_data.topics.topics
    return " ".join(topics[name] for name in sorted(topics))


def _score_window(
    decoder: Decoder, ids: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Log-likelihood of tokens 1.. of a window, and the likeliest token at each of their positions."""
    logits = decoder.prefill(0, ids, 0, np.arange(len(ids) - 1)).astype(np.float64)  # [T - 1, V]
    logits -= logits.max(axis=-1, keepdims=True)
    normaliser = np.log(np.exp(logits).sum(axis=-1))
    chosen = logits[np.arange(len(ids) - 1), ids[1:]]
    return chosen - normaliser, logits.argmax(axis=-1)
