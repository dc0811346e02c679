"""ONNX Runtime GenAI behind HTTP: its Engine, create_request, begin_turn and run.

On CPU its engine batches statically: requests that wait are admitted together, up to `--parallel`, when all of the
batch before have ended. (Its continuous batching needs PagedAttention, which its builder exports for CUDA only.) It
caches no prefixes there either.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime_genai  # type: ignore[import-not-found]  # in its own environment only

from loadtest.peers.shims.completion_server import Submission, parse_arguments, serve

NUM_EVENTS = 256


class GenaiBackend:
    """Requests with one turn each; a step is one `Engine.run`."""

    def __init__(self, model: str, num_threads: int, num_parallel: int, max_context_tokens: int) -> None:
        config = onnxruntime_genai.Config(model)
        config.clear_providers()
        config.overlay(
            json.dumps(
                {
                    "engine": {"static_batching": {"max_batch_size": num_parallel}},
                    "search": {"max_length": max_context_tokens},
                    "model": {"decoder": {"session_options": {"intra_op_num_threads": num_threads}}},
                }
            )
        )
        self._model = onnxruntime_genai.Model(config)
        self._tokenizer = onnxruntime_genai.Tokenizer(self._model)
        self._engine = onnxruntime_genai.Engine(self._model)
        self._events = self._engine.create_event_buffer(NUM_EVENTS)
        self._running: list[tuple[Any, int, Submission]] = []

    def begin(self, submission: Submission) -> None:
        """Tokenise and begin a turn."""
        prompt = submission.prompt
        ids = np.array(self._tokenizer.encode(prompt) if isinstance(prompt, str) else prompt, dtype=np.int32)
        submission.prompt_tokens = len(ids)
        request = self._engine.create_request()
        options = onnxruntime_genai.TurnOptions(request)
        options.set_do_sample(False)
        options.set_max_generated_tokens(submission.max_tokens)
        if submission.ignore_eos:
            options.set_min_generated_tokens(submission.max_tokens)
        self._running.append((request, request.begin_turn(ids, options), submission))

    def step(self) -> bool:
        """One run of the engine; then pass on its events."""
        if not self._engine.has_pending_requests():
            return False
        for request, turn_id, submission in self._running:
            if submission.is_abandoned:
                request.cancel_turn(turn_id)
        for event in self._engine.run(self._events):
            self._pass_on(event)
        return True

    def score(self, token_ids: Sequence[int]) -> list[float | None]:
        """Log-probabilities from the logits that its Generator returns for a prompt, with the same model."""
        parameters = onnxruntime_genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=len(token_ids) + 1, do_sample=False)
        generator = onnxruntime_genai.Generator(self._model, parameters)
        generator.append_tokens(np.array(token_ids, dtype=np.int32))
        logits = np.asarray(generator.get_output("logits"), dtype=np.float64)[0, :-1]  # [T - 1, V]
        logits -= logits.max(axis=-1, keepdims=True)
        normaliser = np.log(np.exp(logits).sum(axis=-1))
        chosen = logits[np.arange(len(logits)), np.array(token_ids[1:])]
        return [None, *(chosen - normaliser).tolist()]

    def _pass_on(self, event: Any) -> None:
        flags, kinds = event.flags.value, onnxruntime_genai.EngineEventFlags
        running = next(running for running in self._running if running[0] is event.request)
        request, _, submission = running
        if flags & kinds.TOKEN.value:
            submission.events.put([event.token])
        if flags & kinds.FAILED.value:
            submission.events.put(RuntimeError(f"engine: {event.error_code}"))
        elif flags & kinds.TURN_FINISHED.value:
            submission.events.put(None)
        if flags & (kinds.FAILED.value | kinds.TURN_FINISHED.value):
            self._running.remove(running)
            request.close()


if __name__ == "__main__":
    arguments = parse_arguments(__doc__ or "")
    serve(
        lambda: GenaiBackend(str(arguments.model), arguments.threads, arguments.parallel, arguments.max_context_tokens),
        arguments.tokenizer,
        arguments.port,
    )
