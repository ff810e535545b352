"""To the hub and back, by its mixin's conventions; no network: a folder stands in for the hub's repository."""

import contextlib
import json
import logging
import shutil
import socket
import threading
import time

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError

from plures.errors import PluresError, WorkFailed
from plures.metrics.thresholds import Thresholds
from plures.models.model import build_model, save
from plures.models.weights import hub, hub_access
from plures.models.weights.hub import HubModel, from_hub, push_to_hub

logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # of threads that a stalled hub leaves behind
CLASSES = ("cat", "dog", "sofa")
IMAGES = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


REALLY_ANSWERS = hub_access.answers


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(hub_access, "answers", lambda address: True)


@pytest.fixture
def run(tmp_path):
    """What of a run folder goes to the hub, and what must not."""
    folder = tmp_path / "run"
    torch.manual_seed(0)
    save(build_model("small_conv", "codebook", CLASSES, image_size=32).eval(), folder)
    (folder / "model_card.md").write_text("---\nlibrary_name: plures\n---\n# Three tags\n")
    (folder / "experiment.yaml").write_text("data: /home/someone/photos\n")
    Thresholds.constant(CLASSES, 0.3).save(folder)
    return folder


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A hub of one repository, which lies in a folder."""
    place = tmp_path / "hub"
    asked = {}

    def upload_folder(self, *, repo_id, folder_path, **others):
        shutil.copytree(folder_path, place / repo_id)
        asked.update(others, repo_id=repo_id)
        return f"https://hub/{repo_id}/commit/1"

    def create_repo(self, repo_id, *, private=None, exist_ok=False, **others):
        asked["private"] = private
        return type("Url", (), {"repo_id": repo_id})

    def download(repo_id, name, *, revision, **others):
        copy = tmp_path / "cache" / "commit"
        copy.mkdir(parents=True, exist_ok=True)
        asked.setdefault("revisions", []).append(revision)
        if not (place / repo_id / name).exists():
            raise EntryNotFoundError("there is no such file")
        return str(shutil.copy(place / repo_id / name, copy / name))

    def config(repo_id, filename, **others):
        return str(place / repo_id / filename)

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", config)
    return place, asked


def logits(model):
    with torch.inference_mode():
        return model(IMAGES).logits.numpy()


def test_a_model_comes_back_from_the_hub_as_it_went(run, repository):
    place, asked = repository
    assert push_to_hub(run, "someone/three-tags", private=True) == "https://hub/someone/three-tags/commit/1"
    assert asked["private"] is True
    back = from_hub("someone/three-tags", revision="v1")
    assert asked["revisions"] == ["v1", "commit", "commit", "commit"]
    assert not back.training
    assert back.classes == CLASSES
    np.testing.assert_array_equal(logits(back), logits(HubModel.read(run)))
    sent = {file.name for file in (place / "someone/three-tags").iterdir()}
    assert sent == {"model.safetensors", "model.json", "README.md", "thresholds.json", "config.json"}


def test_card_and_thresholds_travel_with_it(run, repository, tmp_path):
    push_to_hub(run, "someone/three-tags")
    back = from_hub("someone/three-tags")
    back.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/README.md").read_text() == (run / "model_card.md").read_text()
    chosen = Thresholds.load(tmp_path / "again", CLASSES)
    assert chosen is not None
    assert chosen.values.tolist() == [0.3] * 3


def test_the_mixins_own_methods_work(run, tmp_path):
    HubModel.read(run).save_pretrained(tmp_path / "folder")
    back = HubModel.from_pretrained(tmp_path / "folder")
    np.testing.assert_array_equal(logits(back), logits(HubModel.read(run)))
    assert json.loads((tmp_path / "folder/config.json").read_text())["library_name"] == "plures"


def test_without_a_card_the_hub_gets_one_that_names_the_library(run, tmp_path):
    (run / "model_card.md").unlink()
    HubModel.read(run).save_pretrained(tmp_path / "folder")
    assert "library_name: plures" in (tmp_path / "folder/README.md").read_text()


def test_a_folder_without_a_model_is_refused_before_anything_is_sent(tmp_path, repository):
    (tmp_path / "empty").mkdir()
    with pytest.raises(PluresError, match="no model in"):
        push_to_hub(tmp_path / "empty", "someone/nothing")
    assert not repository[0].exists()


def test_a_hub_that_cannot_be_reached_is_one_line(run, monkeypatch):
    def refuse(self, *_, **__):
        raise OSError("no route to host\nand much more")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(WorkFailed, match=r"^someone/x: not uploaded: no route to host$"):
        push_to_hub(run, "someone/x")


def test_what_is_no_repository_and_no_folder_is_one_line():
    with pytest.raises(PluresError, match="no model found"):
        from_hub("not a/repository/name")


def test_a_hub_that_accepts_and_never_answers_is_one_line(monkeypatch, caplog):
    """Its own client would try again for minutes. What the process says to others about the hub stays as it was."""
    monkeypatch.setattr(hub_access, "answers", REALLY_ANSWERS)
    monkeypatch.setattr(hub_access, "SECONDS", 0.4)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(hub_access.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(PluresError, match="nobody/nothing: no model found"):
            from_hub("nobody/nothing")
    assert [r.getMessage().partition(" ")[2] for r in caplog.records if r.name == "plures"] == [
        "does not answer; only what is on this machine is used (--offline asks nobody)"
    ]
    assert hub_access.constants.HF_HUB_OFFLINE is False


HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
FILE = b'ETag: "abc"\r\nX-Repo-Commit: ' + b"1" * 40 + b"\r\nContent-Length: 1000000\r\n\r\n"


@pytest.mark.parametrize("stall", ["at the second answer", "in the headers", "in the file", "a byte now and then"])
def test_a_hub_that_answers_and_then_stalls_is_one_line(monkeypatch, caplog, tmp_path, stall):
    """It answers the first question, and then never ends."""
    monkeypatch.setattr(hub_access, "answers", REALLY_ANSWERS)
    monkeypatch.setattr(hub_access, "SECONDS", 0.5)
    monkeypatch.setattr(hub_access, "LOOK_EVERY", 0.05)
    monkeypatch.setattr(hub_access.constants, "HF_HUB_CACHE", str(tmp_path))
    asked, over = [], threading.Event()

    def talk(client):
        with client, contextlib.suppress(OSError):
            line = client.recv(65536).partition(b"\r\n")[0]
            asked.append(line)
            if len(asked) == 1:
                client.sendall(HEAD + b"Content-Length: 0\r\n\r\n")
                return
            if stall != "at the second answer":
                client.sendall(HEAD if stall == "in the headers" else HEAD + FILE)
            if line.startswith(b"HEAD") and "headers" not in stall and "second" not in stall:
                return
            while not over.wait(0.05):
                if stall == "a byte now and then":
                    client.sendall(b"x")
                elif stall == "in the headers":
                    client.sendall(b"X")

    def serve():
        while not over.is_set():
            with contextlib.suppress(OSError):
                threading.Thread(target=talk, args=(hub_socket.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as hub_socket:
        address = f"http://127.0.0.1:{hub_socket.getsockname()[1]}"
        monkeypatch.setattr(hub_access.constants, "ENDPOINT", address)
        monkeypatch.setattr(
            hub_access.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        threading.Thread(target=serve, daemon=True).start()
        try:
            with pytest.raises(PluresError, match="nobody/nothing: no model found"):
                from_hub("nobody/nothing")
        finally:
            over.set()
    assert len(asked) > 1
    assert (b"GET" in b"".join(asked)) == (stall in ("in the file", "a byte now and then"))
    assert [r.getMessage().partition(" ")[2] for r in caplog.records if r.name == "plures"] == [
        "answered and then sent nothing more; only what is on this machine is used (--offline asks nobody)"
    ]
    assert hub_access.constants.HF_HUB_OFFLINE is False


def test_work_that_is_slow_without_the_hub_is_waited_for(monkeypatch):
    """Building a large network may take long; only the hub is hurried."""
    monkeypatch.setattr(hub_access, "SECONDS", 0.1)
    monkeypatch.setattr(hub_access, "LOOK_EVERY", 0.02)
    assert hub_access.ask_hub(lambda: time.sleep(0.5) or "built") == "built"
    with pytest.raises(KeyError, match="lost"):
        hub_access.ask_hub(lambda: {}["lost"])


def test_offline_asks_nobody(monkeypatch):
    monkeypatch.setattr(hub_access, "answers", lambda address: pytest.fail("asked"))
    monkeypatch.setattr(hub_access.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PluresError, match="nobody/nothing: no model found"):
        from_hub("nobody/nothing")
