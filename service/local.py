"""LocalModel: a bundle driven in this process, without a server. Behind `attend generate`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model.bundle import Bundle, open_bundle
from model.chat import ChatTemplate
from model.decoder import Decoder
from model.kv_cache import KVCache
from model.sampling import SamplingParams
from model.tokenizer import Tokenizer
from service.engine.engine import Engine
from service.engine.request import Request, StopConditions
from service.engine.scheduler import Scheduler

CHUNK_TOKENS = 512


@dataclass(frozen=True)
class LocalModel:
    """One bundle, its tokenizer and an engine with a single row."""

    bundle: Bundle
    tokenizer: Tokenizer
    engine: Engine

    @classmethod
    def load(cls, path: Path, threads: int = 0) -> "LocalModel":
        """Open a bundle.

        Raises:
            BundleError, DecoderError, TokenizerError: it cannot be used.
        """
        bundle = open_bundle(path)
        kv_cache = KVCache(bundle.config, num_rows=1, capacity_tokens=bundle.config.context_tokens)
        engine = Engine(Decoder(bundle, kv_cache, threads), Scheduler(CHUNK_TOKENS))
        return cls(bundle, Tokenizer(bundle.tokenizer_json), engine)

    def generate(
        self, prompt: str, max_tokens: int, sampling: SamplingParams, *, use_template: bool = True
    ) -> Iterator[str]:
        """The answer, piece by piece; `max_tokens` is cut to what the context still holds.

        Raises:
            InvalidRequestError: the prompt is empty or longer than the context.
        """
        config = self.bundle.config
        ids = self._encode(prompt, use_template)
        limit = max(1, min(max_tokens, config.context_tokens - len(ids)))
        stop = StopConditions(limit, eos_token_ids=frozenset(config.eos_token_ids))
        request = Request("local", tuple(ids), sampling, stop, self.tokenizer.incremental())
        self.engine.limits.check(request)
        self.engine.add(request)
        while not request.is_finished:
            for event in self.engine.step().events:
                yield event.text

    def _encode(self, prompt: str, use_template: bool) -> list[int]:
        template = self.bundle.chat_template
        if not use_template or template is None:
            return self.tokenizer.encode(prompt)
        special_tokens, control_tokens = self.bundle.manifest.special_tokens, self.tokenizer.control_tokens
        chat_template = ChatTemplate(template, special_tokens, control_tokens)
        return self.tokenizer.encode_pieces(chat_template.pieces([{"role": "user", "content": prompt}]))
