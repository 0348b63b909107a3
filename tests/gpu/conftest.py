"""Float32 is float32 in all of these, as in a training."""

import pytest

from dist3dgs.splats.precision import full_precision


@pytest.fixture(autouse=True)
def _full_precision() -> None:
    full_precision()
