"""Memory kept between steps, in processes of their own as it cannot be taken back."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from plures.training.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**23)  # 64 MB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has the setting")
def test_memory_that_was_freed_is_not_asked_for_again():
    faults = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "given back")
    }
    assert faults["kept"] < 100
    assert faults["given back"] > 10 * faults["kept"]
