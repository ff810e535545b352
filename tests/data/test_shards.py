"""Tar shards: what is said of each photo, photos read where they lie, from a disk or an address."""

import io
import json
import tarfile

import fsspec
import numpy as np
import pytest
from PIL import Image

from plures.data.loading import ImageBatches, Order
from plures.data.photos import Transform, open_image
from plures.data.read import read
from plures.errors import BadData, PluresError

RANDOM = np.random.default_rng(0)
PIXELS = {name: RANDOM.integers(0, 256, (12, 14, 3), dtype=np.uint8) for name in ("a", "b", "c", "d")}


def _png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _tar(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _shards():
    first = {"a.png": _png(PIXELS["a"]), "a.json": json.dumps({"tags": ["cat"], "split": "train"}).encode()}
    first |= {"b.txt": b"dog; cat\n", "b.png": _png(PIXELS["b"])}
    second = {"in/c.png": _png(PIXELS["c"]), "in/c.json": b'{"tags": ["dog"], "absent": ["cat"], "split": "test"}'}
    second |= {"in/d.png": _png(PIXELS["d"]), "lonely.txt": b"cat"}
    return {"x-0.tar": _tar(first), "x-1.tar": _tar(second)}


@pytest.fixture(params=["disk", "address"])
def place(request, tmp_path):
    if request.param == "disk":
        for name, content in _shards().items():
            (tmp_path / name).write_bytes(content)
        return str(tmp_path)
    memory = fsspec.filesystem("memory")
    for name, content in _shards().items():
        memory.pipe_file(f"/shards/{name}", content)
    return "memory://shards"


def test_what_is_said_and_the_photos_themselves(place):
    data = read(f"shards:{place}", verify=True)
    assert data.classes == ("cat", "dog")
    assert data.labels.values.tolist() == [[1, -1], [1, 1], [0, 1], [-1, -1]]
    assert data.splits.tolist() == ["train", "", "test", ""]
    for image, name in zip(data.images, "abcd", strict=True):
        assert np.array_equal(np.asarray(open_image(image)), PIXELS[name])
    assert read(f"shards:{place}", complete=True).labels.complete


def test_batches_of_worker_processes(tmp_path):
    for name, content in _shards().items():
        (tmp_path / name).write_bytes(content)
    data = read(str(tmp_path))  # recognised without its name
    for batch in ImageBatches(data, Transform(12), Order(4, 3, shuffle_seed=0), workers=1).epoch(0):
        for image, row in zip(batch.inputs, batch.index.tolist(), strict=True):
            expected = Transform(12)(Image.fromarray(PIXELS["abcd"[row]]))
            assert np.array_equal(image.numpy(), expected.numpy())


def test_what_is_wrong_is_named(tmp_path):
    files = {"a.png": _png(PIXELS["a"]), "a.json": b'{"tags": ["cat"], "absent": ["cat"]}'}
    files |= {"b.png": b"broken", "b.txt": b"cat", "c.json": b"[1]", "c.png": _png(PIXELS["c"])}
    (tmp_path / "x.tar").write_bytes(_tar({**files, "d.png": _png(PIXELS["d"]), "d.txt": b"dog"}))
    with pytest.raises(BadData) as caught:
        read(str(tmp_path / "x.tar"), verify=True)
    said = [f"{p.file} {p.what}" for p in caught.value.problems if p.severity == "error"]
    assert len(said) == 3
    assert "a.json cannot be read ('cat' is among the tags and among the absent)" in said[0]
    assert "c.json" in said[1]
    assert "not an image" in said[2]
    assert read(str(tmp_path / "x.tar"), verify=True, skip_bad=True).classes == ("cat", "dog")
    (tmp_path / "y.tar").write_bytes(b"no tar at all")
    with pytest.raises(BadData, match=r"y\.tar: not a tar that can be read"):
        read(str(tmp_path / "y.tar"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(PluresError, match="no shards there"):
        read(f"shards:{tmp_path / 'empty'}")
