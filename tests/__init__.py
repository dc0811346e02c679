"""Tests: unit mirrors the packages, integration runs real ONNX Runtime, e2e real servers and clients."""
