"""Prediction on a Ray cluster of two machines (simulated): the same rows as here, once each."""

import os

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from plures.config import Experiment
from plures.errors import PluresError
from plures.models.model import build_model, save
from plures.prediction.predict import predict
from plures.prediction.ray_cluster import predict_on_ray
from plures.runs.run import Run


def _rows(folder):
    return [row for part in sorted(folder.glob("*.parquet")) for row in pq.read_table(part).to_pylist()]


@pytest.fixture
def cluster():
    pytest.importorskip("ray", reason="ray is not installed: pip install 'plures[ray]'")
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.mark.slow
def test_two_workers_write_what_one_process_writes(cluster, tmp_path):
    import ray

    assert len([node for node in ray.nodes() if node["Alive"]]) == 2
    torch.manual_seed(0)
    settings = {"image_size": 16}
    run = Run.create(tmp_path / "run", Experiment(backbone={"name": "small_conv", **settings}, device="cpu"))
    save(build_model("small_conv", "codebook", ("a", "b", "c"), settings), tmp_path / "run")
    random = np.random.default_rng(0)
    for row in range(20):
        Image.fromarray(random.integers(0, 256, (18, 20, 3), dtype=np.uint8)).save(tmp_path / f"{row:02d}.png")
    (tmp_path / "07.png").write_bytes(b"broken")
    (tmp_path / "list.txt").write_text("".join(f"{row:02d}.png\n" for row in range(20)))
    here = predict(run, tmp_path / "list.txt", tmp_path / "here", parts=3)
    there = predict_on_ray(run, tmp_path / "list.txt", tmp_path / "there", parts=3, workers=2)
    assert (there.images, there.skipped) == (here.images, here.skipped) == (19, 1)
    assert _rows(tmp_path / "here") == _rows(tmp_path / "there")
    os.remove(tmp_path / "there" / "part-00002.parquet")
    again = predict_on_ray(run, tmp_path / "list.txt", tmp_path / "there", parts=3, workers=2, resume=True)
    assert (again.images, again.skipped) == (19, 1)
    assert _rows(tmp_path / "here") == _rows(tmp_path / "there")


def test_a_file_is_refused(tmp_path):
    pytest.importorskip("ray", reason="ray is not installed: pip install 'plures[ray]'")
    with pytest.raises(PluresError, match="give a folder, such as --out found"):
        predict_on_ray(tmp_path, tmp_path, "found.csv")
