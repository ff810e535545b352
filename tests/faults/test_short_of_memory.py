"""Real shortage of memory: a limit of the address space, in processes of their own."""

import subprocess
import sys

import pytest

pytest.importorskip("resource", reason="Windows has no limit of address space for a process")
if sys.platform != "linux":
    pytest.skip("only Linux says how much address space a process has", allow_module_level=True)

LIMITED = """
import logging, resource, sys, threading, time
import torch
torch.set_num_threads(1)
def leave(megabytes):
    size = [int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmSize:")][0]
    resource.setrlimit(resource.RLIMIT_AS, (size + (megabytes << 20),) * 2)
"""
HALVED = """
from plures.models.batch_halving import BatchHalver
net = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
images = torch.rand(64, 3, 128, 128)
sizes = []
def run(batch):
    out = net(batch)
    sizes.append(len(batch))
    return out
with torch.inference_mode():
    wanted = torch.cat([net(image) for image in images.split(1)])
    leave(150)  # 64 images take 260 MB a layer
    found = BatchHalver(run, torch.cat)(images)
assert 1 <= max(sizes) < 64, sizes
assert torch.allclose(found, wanted, atol=1e-6)
print("halved")
"""
THREADS = """
from plures.system import in_threads
leave(4)  # the stack of a thread takes 8
def look(item):
    time.sleep(0.01)
    return 2 * item, threading.current_thread() is threading.main_thread()
assert in_threads(look, range(40), 32) == [(2 * n, True) for n in range(40)]
print("alone")
"""
ARROW = """
from plures.errors import machine_failure
import plures, pyarrow
leave(4)
try:
    pyarrow.array(range(100_000_000 // 8)).take(pyarrow.array(range(100)))
    bytes(100_000_000)
except Exception as error:
    print(machine_failure(error))
"""


def told(script):
    asked = subprocess.run([sys.executable, "-c", LIMITED + script], capture_output=True, text=True, timeout=300)
    assert asked.returncode == 0, asked.stderr
    return asked.stdout.strip()


def test_a_batch_that_does_not_fit_is_halved():
    assert told(HALVED) == "halved"


def test_work_goes_on_where_no_thread_starts():
    assert told(THREADS) == "alone"


def test_no_memory_is_known_as_such():
    assert told(ARROW).startswith("out of memory; use")


COMMAND = """
from plures import cli
import plures.prediction.predict, plures.training.train
sys.argv = ["plures", *sys.argv[2:]]
leave(int(sys.argv.pop(1)))
cli.main()
"""


@pytest.mark.slow
def test_a_training_without_memory_is_one_line(tmp_path):
    settings = ["scenes", "data.train=64", "data.val=16", "data.test=16", "data.size=64", "backbone=small_conv"]
    settings += ["backbone.image_size=256", "batch_size=64", "epochs=1", "workers=0", "device=cpu"]
    command = [sys.executable, "-c", LIMITED + COMMAND, "", "60", "train", *settings, "--out", str(tmp_path / "run")]
    asked = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert asked.returncode == 1
    assert "out of memory" in asked.stderr.splitlines()[-1]
    assert "Traceback" not in asked.stderr
