"""The default model at every precision, exported once and kept in the cache for all tests that compute with it.

Not marked `model`: this is what makes it, while other tests run beside it.
"""

import pytest

from model.bundle import open_bundle
from model.bundle_writer import ExportRequest, export_bundle
from model.precision import PRECISION_NAMES

FIXTURES = {"w8a8": "default_bundle", "int8": "int8_bundle", "int4": "int4_bundle", "fp32": "fp32_bundle"}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("precision", PRECISION_NAMES)
def test_the_default_model_exports_and_is_then_reused(precision: str, request: pytest.FixtureRequest) -> None:
    """Its bundle opens, says what it is, and a second export finds it valid and touches no file."""
    bundle = request.getfixturevalue(FIXTURES[precision])
    assert open_bundle(bundle.path).manifest.precision == precision
    before = {file.name: file.stat().st_mtime_ns for file in bundle.path.iterdir()}
    stages: list[str] = []
    export_bundle(ExportRequest("default", bundle.path, precision), bundle.path.parent.parent, stages.append)
    assert {file.name: file.stat().st_mtime_ns for file in bundle.path.iterdir()} == before
    assert not any("tracing" in stage for stage in stages)
