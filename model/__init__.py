"""Weights -> ONNX bundle (offline), bundle -> logits (online). Knows nothing of `service`."""
