"""The service around a model: engine, HTTP API, metrics, deployment."""
