"""Parquet shards: photos in the rows of a table, read a row group at a time, from a disk or an address."""

import io

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from plures.data.formats import parquet_shards
from plures.data.loading import ImageBatches, Order
from plures.data.photos import Transform, Unreadable, open_image
from plures.data.read import read
from plures.errors import BadData, PluresError
from plures.scoring.sources import images_of

RANDOM = np.random.default_rng(0)
PIXELS = [RANDOM.integers(0, 256, (12, 14, 3), dtype=np.uint8) for _ in range(7)]


def _png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


PHOTOS = [_png(pixels) for pixels in PIXELS]


def _tables():
    """Five photos as bytes with tags in text, two as Hugging Face writes them with tags in lists."""
    first = {"image": PHOTOS[:5], "tags": ["cat", "dog; cat", "", None, "dog"]}
    first |= {"absent": ["dog", None, "cat", None, None], "split": ["train", "train", "train", "val", "test"]}
    second = {"image": [{"bytes": photo, "path": "x.png"} for photo in PHOTOS[5:]], "tags": [["cow"], ["cat", "cow"]]}
    return {"a-0.parquet": pa.table(first), "a-1.parquet": pa.table(second)}


@pytest.fixture(params=["disk", "address"])
def place(request, tmp_path):
    folder = str(tmp_path) if request.param == "disk" else f"memory://{tmp_path.name}"
    for name, table in _tables().items():
        with fsspec.open(f"{folder}/{name}", "wb") as handle:
            pq.write_table(table, handle, row_group_size=2)
    return folder


def test_what_is_said_and_the_photos_themselves(place):
    data = read(f"shards:{place}", verify=True)
    assert data.classes == ("cat", "cow", "dog")
    known = [[1, -1, 0], [1, -1, 1], [0, -1, -1], [-1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, -1]]
    assert data.labels.values.tolist() == known
    assert data.splits.tolist() == ["train", "train", "train", "val", "test", "", ""]
    for row in (6, 0, 3, 4, 2, 5, 1):
        assert np.array_equal(np.asarray(open_image(data.images[row])), PIXELS[row])
    assert read(f"shards:{place}", complete=True).labels.complete


def test_only_the_row_group_that_is_needed_is_read_and_once(tmp_path, monkeypatch):
    pq.write_table(_tables()["a-0.parquet"], tmp_path / "x.parquet", row_group_size=2)
    data = read(str(tmp_path / "x.parquet"))
    asked = []
    opened = parquet_shards._opened

    class Watched:
        def __init__(self, *key):
            self.parquet = opened(*key)
            self.schema_arrow = self.parquet.schema_arrow

        def read_row_group(self, group, **how):
            asked.append((group, how["columns"]))
            return self.parquet.read_row_group(group, **how)

    monkeypatch.setattr(parquet_shards, "_opened", Watched)
    for row in (2, 3, 2, 4):
        open_image(data.images[row])
    assert asked == [(1, ["image"]), (2, ["image"])]


def test_a_column_a_class_in_batches_of_worker_processes(tmp_path):
    columns = {"image": PHOTOS, "cat": [1, 0, None, 1, 0, 1, 0], "dog": [None, 1, 1, None, 0, 0, 1]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet", row_group_size=3)
    data = read(str(tmp_path))  # recognised without its name
    assert data.labels.values.tolist() == [[1, -1], [0, 1], [-1, 1], [1, -1], [0, 0], [1, 0], [0, 1]]
    open_image(data.images[0])  # this process has the file open when the workers come to be
    for batch in ImageBatches(data, Transform(12), Order(7, 3, shuffle_seed=0), workers=2).epoch(0):
        for image, row in zip(batch.inputs, batch.index.tolist(), strict=True):
            assert np.array_equal(image.numpy(), Transform(12)(Image.fromarray(PIXELS[row])).numpy())
    names = [name for name, _ in images_of(tmp_path / "x.parquet")()]
    assert names == list(data.images)


def test_what_is_wrong_is_named(tmp_path):
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [b"broken", None, PHOTOS[0]], "tags": ["cat", "dog", "cow"]}), file)
    with pytest.raises(BadData) as caught:
        read(f"shards:{tmp_path}", verify=True)
    said = [f"{p.file} {p.what}" for p in caught.value.problems if p.severity == "error"]
    assert "x.parquet#0/0 not an image" in said[0]
    assert "x.parquet#0/1" in said[1]
    assert read(f"shards:{tmp_path}", verify=True, skip_bad=True).labels.present.sum() == 1
    with pytest.raises(Unreadable, match=r"x\.parquet#0/1: .*no image in this row"):
        open_image(read(str(file)).images[1])
    pq.write_table(pa.table({"image": ["a.png"], "tags": ["cat"]}), file)
    with pytest.raises(BadData, match="column 'image' is of type string; expected the bytes of image files"):
        read(f"shards:{file}")
    pq.write_table(pa.table({"photo": [b"x"], "tags": ["cat"]}), file)
    with pytest.raises(BadData, match="rename 'photo' to 'image'"):
        read(f"shards:{file}")
    file.write_bytes(b"no Parquet at all")
    with pytest.raises(BadData, match=r"x\.parquet: not a Parquet file"):
        read(f"shards:{file}")
    (tmp_path / "y.tar").write_bytes(b"")
    with pytest.raises(PluresError, match="shards of two kinds"):
        read(f"shards:{tmp_path}")


def test_a_row_whose_labels_are_wrong_goes_with_its_photo(tmp_path):
    columns = {"image": PHOTOS[:3], "tags": ["cat", "dog;cat", "dog"], "absent": ["dog", "cat", "cat"]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    data = read(str(tmp_path), skip_bad=True)
    assert [image.rpartition("#")[2] for image in data.images] == ["0/0", "0/2"]
    assert data.labels.values.tolist() == [[1, 0], [0, 1]]


def test_a_file_written_anew_is_read_anew(tmp_path):
    for row in (0, 1):
        pq.write_table(pa.table({"image": PHOTOS[row : row + 1], "tags": ["cat"]}), tmp_path / "x.parquet")
        data = read(str(tmp_path))
        assert np.array_equal(np.asarray(open_image(data.images[0])), PIXELS[row])
