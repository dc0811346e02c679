"""Starts llama.cpp's own HTTP server (out of xllamacpp, a binding without a command line): nothing of ours answers.

The options are llama-server's: `-t`, `-np` and `-c`, which it divides among the slots; all else is its default
(continuous batching, prompt cache, flash attention where it helps, f16 KV cache).
"""

import signal

import xllamacpp  # type: ignore[import-not-found]  # in its own environment only

from loadtest.peers.shims.completion_server import parse_arguments

if __name__ == "__main__":
    arguments = parse_arguments(__doc__ or "")
    params = xllamacpp.CommonParams()
    params.model.path = str(arguments.model)
    params.hostnames = ["127.0.0.1"]
    params.port = arguments.port
    params.n_parallel = arguments.parallel
    params.n_ctx = arguments.parallel * arguments.max_context_tokens
    params.cpuparams.n_threads = arguments.threads
    params.cpuparams_batch.n_threads = arguments.threads
    params.cache_prompt = not arguments.no_prefix_cache
    server = xllamacpp.Server(params)
    print(f"listening at {server.listening_address}", flush=True)
    signal.pause()
