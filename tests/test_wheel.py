"""What people install: the wheel made of the sdist, in an environment of its own, away from the checkout, offline."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import plures

pytest.importorskip("hatchling", reason='needs pip install -e ".[dev]"')
pytestmark = pytest.mark.slow
CHECKOUT = Path(__file__).parents[1]
SOURCE = CHECKOUT / "src" / "plures"
DATA = ["data.train=60", "data.val=20", "data.test=20", "data.size=32"]


def run(*command, at, **variables):
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in command], cwd=at, env={**kept, **variables}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The sdist of the checkout, and the wheel that can be made of it alone."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, at=CHECKOUT)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, at=unpacked)
    (wheel,) = folder.glob("*.whl")
    return unpacked, wheel


@pytest.fixture(scope="module")
def installed(made, tmp_path_factory):
    """The programs of an environment that holds the wheel and sees this environment's other packages."""
    folder = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", at=folder)
    python = folder / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", made[1], at=folder)
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", at=folder).strip())
    # added after the installation, so that pip does not take the checkout's plures for the wheel
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent, folder


def test_the_sdist_has_what_a_packager_needs(made):
    unpacked, _ = made
    for name in ("LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "tests/test_wheel.py"):
        assert (unpacked / name).is_file(), name


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(made):
    with zipfile.ZipFile(made[1]) as archive:
        inside = {name for name in archive.namelist() if not name.startswith(f"plures-{plures.__version__}.dist-info/")}
        metadata = archive.read(f"plures-{plures.__version__}.dist-info/METADATA").decode()
    files = (f for f in SOURCE.rglob("*") if f.is_file() and "__pycache__" not in f.parts)
    assert inside == {f"plures/{f.relative_to(SOURCE).as_posix()}" for f in files}
    kinds = {Path(name).suffix for name in inside} | {Path(name).name for name in inside}
    assert {".py", ".yaml", ".html", ".css", ".js", "py.typed"} <= kinds
    assert f"\nVersion: {plures.__version__}\n" in metadata
    for extra in ("web", "export", "ray", "search", "track"):
        assert f"\nProvides-Extra: {extra}\n" in metadata


def test_it_trains_and_reports_away_from_the_checkout(installed):
    programs, folder = installed
    where = run(programs / "python", "-c", "import plures; print(plures.__file__)", at=folder)
    assert Path(where.strip()).is_relative_to(programs.parent)
    assert run(programs / "plures", "--version", at=folder) == f"plures {plures.__version__}\n"
    here = {"PLURES_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    settings = ["backbone=small_conv", "head=codebook", "epochs=1", "workers=0", *DATA]
    run(programs / "plures", "train", "scenes", *settings, "--out", "run", at=folder, **here)
    assert (folder / "run" / "model_card.md").is_file()
    run(programs / "plures", "report", "run", at=folder, **here)  # a page needs the templates
