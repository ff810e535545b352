"""Signals and processes: what is stopped stops at once and wholly; no process outlives the one that began it."""

import ctypes
import gc
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from faults.chaos import Fault, ended, forked, run_here
from faults.test_disks import world  # noqa: F401  (a fixture)
from faults.test_luck import photos
from plures import files
from plures.data.loading import ImageBatches, Order, arrived, crossing
from plures.data.photos import Transform
from plures.errors import machine_failure
from plures.scoring.engines import run_openvino
from plures.system import EndsWithParent, _SignalStack, signal_stack_kept

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the tests stop forks of their own process")
PATIENCE = 120.0  # seconds until a test gives up: nothing here should take more than a few
SETTINGS = ("backbone=small_conv", "backbone.image_size=16", "device=cpu", "workers=0", "loss=role", "batch_size=4")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
VERBS = {
    "train": ("train", "{world}/tags.csv", "--out", "{at}/new", *SETTINGS, "epochs=1"),
    "train with workers": ("train", "{world}/tags.csv", "--out", "{at}/new", *SETTINGS, "epochs=1", "workers=1"),
    "sweep": ("sweep", "{world}/tags.csv", "--out", "{at}/new", *SETTINGS, "epochs=1", "--grid", "lr=1e-3,1e-4"),
    "predict": ("predict", "{world}/run", "{world}/0.png", "--out", "{at}/found.csv"),
    "predict with workers": ("predict", "{world}/run", "{world}/0.png", "--out", "{at}/found.csv", "--workers", "1"),
    "thresholds": ("thresholds", "{at}/run"),
    "suggest": ("suggest", "{world}/run", "--out", "{at}/new.csv"),
    "evaluate": ("evaluate", "{world}/run", "--json", "{at}/report.json"),
    "init": ("init", "{world}/tags.csv", "--out", "{at}/new.csv"),
    "merge": ("merge", "a={world}/tags.csv", "--out", "{at}/new.csv"),
}  # fmt: skip


def until(happens):
    end = time.monotonic() + PATIENCE
    while not happens():
        assert time.monotonic() < end, "this did not happen"
        time.sleep(0.02)


def below(process):
    """The processes that a process began, and that those began."""
    found, stats = [], {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stats[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    waiting = [process]
    while waiting:
        above = waiting.pop()
        children = [pid for pid, parent in stats.items() if parent == above]
        found += children
        waiting += children
    return found


def runs(process):
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_before_writing(command, at, told):
    """Run a command that waits before its first file takes its place, and says so."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def wait(source, target):
        told.send(None)
        time.sleep(PATIENCE)

    files.os.replace = wait
    run_here(command, at, Fault())


def stopped_while_writing(command, at, number):
    """Signal a command before its first file takes its place. Gives exit code and what it said."""
    mine, theirs = multiprocessing.Pipe(duplex=False)
    process = forked(wait_before_writing, command, at, theirs)
    assert mine.poll(PATIENCE), "it never came so far"
    mine.recv()
    children = below(process)
    os.kill(process, number)
    code = ended(process)
    until(lambda: not any(map(runs, children)))
    return code, (at.parent / f"{at.name}.said").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("verb", VERBS)
def test_a_signal_ends_every_verb_at_once(world, tmp_path, verb):  # noqa: F811
    for number in SIGNALS:
        at = tmp_path / number.name
        at.mkdir()
        shutil.copytree(world / "run", at / "run")
        before = sorted(p.name for p in at.rglob("*"))
        command = [word.format(world=world, at=at) for word in VERBS[verb]]
        code, said = stopped_while_writing(command, at, number)
        assert code == 1, said
        assert "Traceback" not in said
        made = {p.name for p in at.rglob("*") if p.is_file() and p.stat().st_size} - set(before)
        assert made == set()
        assert not list(at.rglob("*.tmp"))


@pytest.fixture
def sweeping(world, tmp_path):  # noqa: F811
    """A sweep of two long runs in two processes, both in training."""
    command = ["sweep", str(world / "tags.csv"), "--out", str(tmp_path / "s"), "--jobs", "2", *SETTINGS,
               "epochs=100000", "--grid", "lr=1e-3,1e-4"]  # fmt: skip
    with (tmp_path / "said.txt").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "plures.cli", *command],
            stdout=said, stderr=said, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        until(lambda: process.poll() is not None or len(list((tmp_path / "s" / "runs").glob("*/checkpoint.pt"))) == 2)
        yield process, tmp_path
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("number", ["group SIGINT", "SIGKILL", "SIGKILL of a worker"])
def test_a_sweep_in_processes_ends_wholly_and_resumes(sweeping, number):
    process, folder = sweeping
    children = below(process.pid)
    assert len(children) >= 2
    if number == "SIGKILL of a worker":
        workers = [c for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
        os.kill(workers[0], signal.SIGKILL)
    elif number == "group SIGINT":  # Ctrl-C on a terminal
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(process.pid, signal.SIGKILL)
    code = process.wait(PATIENCE)
    until(lambda: not any(map(runs, children)))
    said = (folder / "said.txt").read_text()
    assert code == (-signal.SIGKILL if number == "SIGKILL" else 1)
    assert "Traceback" not in said
    if number != "SIGKILL":
        assert said.startswith("plures: stopped;" if "INT" in number else "plures: a process of the sweep was killed")
        assert said.count("\n") == 1
    assert not list(folder.rglob("failed.json"))


def _sleep_below(method, pipe):
    """A process that begins another, says its number and waits."""
    child = multiprocessing.get_context(method).Process(target=_sleep, args=(EndsWithParent(),))
    child.start()
    pipe.send(child.pid)
    time.sleep(PATIENCE)


def _sleep(ends_with_parent):
    ends_with_parent()
    time.sleep(10 * PATIENCE)  # longer than the test waits


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("by_main_thread", [True, False])
def test_a_process_ends_with_its_parent_however_that_ends(by_main_thread, monkeypatch):
    """By the kernel's word, and without it by the thread that waits."""
    if not by_main_thread:
        monkeypatch.setattr(EndsWithParent, "__init__", lambda self: setattr(self, "by_main_thread", False))
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    parent = context.Process(target=_sleep_below, args=("fork", theirs))
    parent.start()
    child = mine.recv()
    assert runs(child)
    time.sleep(0.2)  # so that the child has begun
    parent.kill()
    parent.join()
    try:
        until(lambda: not runs(child))
    finally:
        if runs(child):
            os.kill(child, signal.SIGKILL)


def test_data_loading_workers_end_with_their_parent(tmp_path):
    batches = ImageBatches(photos(tmp_path), Transform(16, "none"), Order(16, 4), workers=1)
    assert isinstance(batches._loader.worker_init_fn, EndsWithParent)


# -------------------------------------------------------------------------------------------------- shared memory


def test_without_shared_memory_images_go_through_a_pipe(tmp_path, monkeypatch, caplog):
    """A /dev/shm as small as Docker's: the same images arrive, and one line says why it is slower."""
    data = photos(tmp_path)

    def read(workers):
        batches = ImageBatches(data, Transform(16, "none"), Order(16, 4), workers)
        return [(b.inputs.clone(), b.index) for b in batches.epoch(0)]

    expected = read(0)

    def full(self):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # the workers are forks of this process
    caplog.clear()
    for (mine, at), (theirs, there) in zip(read(1), expected, strict=True):
        assert torch.equal(mine, theirs)
        assert torch.equal(at, there)
    assert [r.getMessage().split(";")[0] for r in caplog.records] == ["shared memory (/dev/shm) is full"]
    images = torch.zeros(2, 3, 4, 4)
    assert crossing(images) is images is arrived(images)  # in one process there is nothing to cross


def test_a_worker_that_is_killed_is_one_line(plures, tmp_path, monkeypatch):
    """As the kernel does where memory runs out. Nothing hangs, and the epochs before are kept."""
    photos(tmp_path)
    real = Transform.with_view

    def killed(self, image, random):
        if multiprocessing.parent_process() is not None and random is not None and killed.parent != os.getpid():
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, image, random)

    killed.parent = os.getpid()
    monkeypatch.setattr(Transform, "with_view", killed)
    (tmp_path / "tags.csv").write_text(
        "image,tags,split\n" + "".join(f"{i}.png,{'ab'[i % 2]},{('train', 'val')[i % 2]}\n" for i in range(16))
    )
    settings = [word if word != "workers=0" else "workers=1" for word in SETTINGS]
    code, _, err = plures("train", tmp_path / "tags.csv", "--out", tmp_path / "run", *settings, "augment=flip")
    assert code == 1
    assert err.splitlines()[-1].startswith("plures: a process that reads images was killed")
    assert "Traceback" not in err


@pytest.mark.slow
def test_processes_that_are_spawned_read_the_same_images(tmp_path):
    """As on Windows and macOS, where nothing is inherited."""
    data, code = photos(tmp_path), (
        "import sys, multiprocessing, torch\n"
        "from plures.data.photos import Transform\n"
        "from plures.data.loading import ImageBatches, Order\n"
        "from plures.data.read import read\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('spawn')\n"
        "    data = read(sys.argv[1])\n"
        "    for workers in (0, 1):\n"
        "        batches = ImageBatches(data, Transform(16, 'flip'), Order(16, 4, shuffle_seed=1), workers)\n"
        "        print([int(b.inputs.long().sum()) for b in batches.epoch(0)])\n"
    )  # fmt: skip
    (tmp_path / "tags.csv").write_text("image,tags\n" + "".join(f"{Path(p).name},a\n" for p in data.images))
    (tmp_path / "script.py").write_text(code)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", tmp_path / "tags.csv"], capture_output=True, text=True
    )
    here, there = done.stdout.splitlines()
    assert here == there != "[]", done.stderr


# --------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"),
                                   RuntimeError("std::bad_alloc"), RuntimeError("could not create a primitive"),
                                   ImportError("x.so: failed to map segment from shared object"),
                                   RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
                                   OSError(12, "Cannot allocate memory")])  # fmt: skip
def test_a_lack_of_memory_is_known_by_all_its_names(error):
    assert machine_failure(error).startswith("out of memory; use a smaller batch_size")


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), OSError(28, "No space left"), ValueError("bad_alloc")]
)
def test_other_errors_are_not_the_machines(error):
    assert machine_failure(error) is None


# --------------------------------------------------------------------------------------------------------- signals


def signal_stack():
    kept = _SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(kept))
    return kept.address, kept.flags, kept.size


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_the_stack_for_signals_is_given_back():
    """Otherwise a signal that comes later overwrites memory that is somebody else's by then."""
    before = signal_stack()
    room = ctypes.create_string_buffer(1 << 17)
    theirs = _SignalStack(ctypes.addressof(room), 0, len(room))
    with signal_stack_kept():
        assert ctypes.CDLL(None).sigaltstack(ctypes.byref(theirs), None) == 0
        assert signal_stack()[0] == ctypes.addressof(room)
    assert signal_stack() == before


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_openvino_leaves_the_stack_for_signals_alone():
    """It takes one of its own where the processor has AMX."""
    pytest.importorskip("openvino", reason='needs pip install "plures[export]"')
    import openvino
    from openvino import opset11 as op

    images = op.parameter([1, 3], np.float32)
    model = openvino.Model([op.relu(images)], [images])
    before = signal_stack()
    with tempfile.TemporaryDirectory() as folder:
        openvino.save_model(model, f"{folder}/m.xml", compress_to_fp16=False)
        files = [(Path(folder) / name).read_bytes() for name in ("m.xml", "m.bin")]
    runs = [run_openvino(*files) for _ in range(2)]
    assert signal_stack() == before
    assert [[v.sum() for v in run(-np.ones((1, 3), np.float32)).values()] for run in runs] == [[0], [0]]
    del runs
    gc.collect()
    assert signal_stack() == before
