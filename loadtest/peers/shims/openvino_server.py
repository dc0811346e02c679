"""OpenVINO GenAI behind HTTP: its ContinuousBatchingPipeline, add_request and a step loop, its default scheduler.

Reads the GGUF itself, or a folder with an IR that optimum-intel has written. Prefix caching on unless told otherwise;
all other settings are the library's defaults (dynamic split-fuse, 256 tokens a step, 8-bit KV cache on CPU).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino  # type: ignore[import-not-found]  # in its own environment only
import openvino_genai  # type: ignore[import-not-found]  # in its own environment only

from loadtest.peers.shims.completion_server import Submission, parse_arguments, serve

KV_CACHE_GB = 4


class OpenVinoBackend:
    """Requests as generation handles; a step advances all that run."""

    def __init__(self, model: str, num_threads: int, has_prefix_cache: bool) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = KV_CACHE_GB
        scheduler.enable_prefix_caching = has_prefix_cache
        properties = {"INFERENCE_NUM_THREADS": num_threads}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)
        self._tokenizer = self._pipeline.get_tokenizer()
        self._running: list[tuple[Submission, Any]] = []
        self._num_requests = 0

    def begin(self, submission: Submission) -> None:
        """Tokenise and add the request."""
        ids = self._tensor(submission.prompt)
        submission.prompt_tokens = ids.shape[1]
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = submission.max_tokens
        config.do_sample = False
        config.ignore_eos = submission.ignore_eos
        self._running.append((submission, self._add(ids, config)))

    def step(self) -> bool:
        """One step of the scheduler; then read what each handle has."""
        if not self._pipeline.has_non_finished_requests():
            return False
        self._pipeline.step()
        self._running = [(submission, handle) for submission, handle in self._running if self._read(submission, handle)]
        return True

    def score(self, token_ids: Sequence[int]) -> list[float | None]:
        """The prompt's log-probabilities as the pipeline itself computes them: `echo` with `logprobs`."""
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = 1
        config.do_sample = False
        config.echo = True
        config.logprobs = 1
        handle = self._add(self._tensor(list(token_ids)), config)
        logprobs: list[float | None] = []
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            while handle.can_read():
                logprobs += handle.read()[0].generated_log_probs
        return [None, *logprobs[1 : len(token_ids)]]

    def _add(self, ids: Any, config: Any) -> Any:
        self._num_requests += 1
        return self._pipeline.add_request(self._num_requests, ids, config)

    def _tensor(self, prompt: str | list[int]) -> Any:
        if isinstance(prompt, str):
            return self._tokenizer.encode(prompt).input_ids
        return openvino.Tensor(np.array([prompt], dtype=np.int64))

    def _read(self, submission: Submission, handle: Any) -> bool:
        """Pass on new tokens; whether the request goes on."""
        while handle.can_read():
            output = handle.read()[0]
            if output.generated_ids:
                submission.events.put(list(output.generated_ids))
        if submission.is_abandoned:
            handle.cancel()
            return False
        if handle.get_status() == openvino_genai.GenerationStatus.RUNNING:
            return True
        submission.events.put(None)
        return False


if __name__ == "__main__":
    options = parse_arguments(__doc__ or "")
    serve(
        lambda: OpenVinoBackend(str(options.model), options.threads, not options.no_prefix_cache),
        options.tokenizer,
        options.port,
    )
