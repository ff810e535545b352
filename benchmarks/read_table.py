"""Seconds and memory of reading a table of 1,000,000 rows x 500 classes, in each form.

    python benchmarks/read_table.py [ROWS] [CLASSES]

Makes the tables and as many empty image files in a temporary folder (about 4 GB; minutes), reads each in a process of
its own and writes benchmarks/results/read_table.csv. `existence`: whether the reader also looked for every image,
as it does by default.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from environment import write

AT_ONCE = 20_000  # rows made at once
A_FOLDER = 1_000  # images in a folder
TAGS = 3.0  # present labels an image, in the mean

READ = """
import json, resource, sys, time
from plures.data.formats.table import Table
start, cpu = time.perf_counter(), time.process_time()
dataset, problems = Table(exist=sys.argv[2] == "yes").read(sys.argv[1])
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
assert not problems, problems[:3]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"rows": len(dataset), "classes": len(dataset.classes), "seconds": round(seconds, 1),
                  "cpu_seconds": round(cpu, 1), "peak_rss_mb": round(peak),
                  "present": int((dataset.labels.values == 1).sum())}))
"""


def make(folder: Path, rows: int, classes: int) -> dict[str, Path]:
    """Write the same labels in four forms; the columns forms hold 1, 0 and blank cells."""
    names = [f"class {column:03d}" for column in range(classes)]
    files = {"csv tags": "tags.csv", "parquet tags": "tags.parquet", "csv columns": "columns.csv"}
    paths = {form: folder / name for form, name in {**files, "parquet columns": "columns.parquet"}.items()}
    generator = np.random.default_rng(0)
    tag_schema = pa.schema({"image": pa.string(), "tags": pa.string()})
    column_schema = pa.schema({"image": pa.string(), **dict.fromkeys(names, pa.int8())})
    plain = pacsv.WriteOptions(quoting_style="none")
    with (
        pacsv.CSVWriter(paths["csv tags"], tag_schema, write_options=plain) as csv_tags,
        pq.ParquetWriter(paths["parquet tags"], tag_schema) as parquet_tags,
        pacsv.CSVWriter(paths["csv columns"], column_schema, write_options=plain) as csv_columns,
        pq.ParquetWriter(paths["parquet columns"], column_schema) as parquet_columns,
    ):
        for start in range(0, rows, AT_ONCE):
            count = min(AT_ONCE, rows - start)
            images = pa.array([f"images/{row // A_FOLDER:05d}/{row:08d}.jpg" for row in range(start, start + count)])
            chance = generator.random((count, classes), dtype=np.float32)
            present, known = chance < TAGS / classes, chance < 0.8
            tags = pa.array([";".join(names[column] for column in np.flatnonzero(row)) for row in present])
            for writer in (csv_tags, parquet_tags):
                writer.write_table(pa.table([images, tags], schema=tag_schema))
            cells = [pa.array(present[:, k].astype(np.int8), mask=~known[:, k]) for k in range(classes)]
            for writer in (csv_columns, parquet_columns):
                writer.write_table(pa.table([images, *cells], schema=column_schema))
    for row in range(rows):
        image = folder / f"images/{row // A_FOLDER:05d}/{row:08d}.jpg"
        if row % A_FOLDER == 0:
            image.parent.mkdir(parents=True)
        image.touch()
    return paths


def main(rows: int = 1_000_000, classes: int = 500) -> None:
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for form, path in make(Path(folder), rows, classes).items():
            for existence in ("no", "yes"):
                command = [sys.executable, "-c", READ, str(path), existence]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                megabytes = round(path.stat().st_size / 1e6)
                results.append({"form": form, "file_mb": megabytes, "existence": existence, **json.loads(done.stdout)})
                print(results[-1], flush=True)
    print(write("read_table", results))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
