"""The names of the precisions that an export offers, apart from the code that makes them (which needs onnx)."""

PRECISION_NAMES = ("fp32", "int8")
DEFAULT_PRECISION = "int8"
