"""Where the photographs, weights and large fixtures lie that stay out of the project; tests that need them skip."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("PLURES_SHARED", Path(__file__).parents[1] / ".." / "shared")).resolve()
needs_shared = pytest.mark.skipif(
    not (SHARED / "data").is_dir(),
    reason=f"needs the photographs and fixtures beside the checkout ({SHARED}); set PLURES_SHARED",
)
