"""The engine: continuous batching over a decoder. Knows nothing of HTTP, pydantic, Ray or Prometheus."""
