"""The layout: imports go down only, and importing plures alone stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "plures"
# from the ground up; a package may import packages below it and itself
PACKAGES = (
    "errors",
    "reprs",
    "system",
    "pace",
    "files",
    "registry",
    "labels",
    "data",
    "models",
    "losses",
    "metrics",
    "recipes",
    "config",
    "runs",
    "scoring",
    "training",
    "sweeps",
    "analysis",
    "prediction",
    "export",
    "report",
    "sklearn",
    "web",
    "console",
    "doctor",
    "api",
    "cli",
    "__main__",
)
ALLOWED_UP = {("report", "console")}  # the demo prints while it trains


def _package(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports_of(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("plures."):
            names.add(_package(node.module))
        elif isinstance(node, ast.Import):
            names |= {_package(a.name) for a in node.names if a.name.startswith("plures.")}
    return names


def upward(files: list[Path]) -> list[str]:
    found = []
    for file in files:
        relative = file.relative_to(SOURCE)
        package = relative.parts[0].removesuffix(".py")
        for other in imports_of(file):
            if (package, other) not in ALLOWED_UP and PACKAGES.index(other) > PACKAGES.index(package):
                found.append(f"{relative} imports {other}")
    return found


def test_imports_go_down_only():
    files = [f for f in SOURCE.rglob("*.py") if f.name != "__init__.py" or f.parent != SOURCE]
    assert len(files) > 30
    assert upward(files) == []


def test_nothing_needs_a_module_of_one_system_to_be_imported():
    """Windows has none of these; inside a function, behind a question, they are welcome."""
    for file in SOURCE.rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "")]
            assert not {"fcntl", "resource", "pwd", "grp", "termios", "msvcrt", "winreg"} & set(names), file


LAZY = {  # other modules that import others of plures inside of a function, and why
    "config.py": "an experiment is read without torch",
    "data/checks/describe.py": "matplotlib, for pictures alone",
    "data/photos.py": "shards of tables look at images, and a photograph may lie in one",
    "doctor.py": "what it says is whether these can be imported",
    "training/cross_fitting.py": "to train again on a fold is to train",
}


def own_imports(tree: ast.AST) -> set[str]:
    """The modules and names of plures that are imported anywhere below."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] == "plures"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "plures":
            found |= {f"{node.module}.{a.name}" for a in node.names} | {str(node.module)}
    return found


def lazy_imports(tree: ast.AST) -> set[str]:
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {name for function in functions for name in own_imports(function)}


def circle(needs: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in turn; empty if there are none."""
    left = dict(needs)
    while free := [m for m, of in left.items() if not (of & left.keys()) - {m}]:
        left = {m: of for m, of in left.items() if m not in free}
    return sorted(left)


def test_circles_are_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    lazy = ast.parse("import plures.a\ndef f():\n    from plures.b import c")
    assert lazy_imports(lazy) == {"plures.b", "plures.b.c"}


def test_modules_import_each_other_in_one_direction_and_at_their_top():
    needs, lazy = {}, set()
    for file in SOURCE.rglob("*.py"):
        tree, place = ast.parse(file.read_text("utf-8")), file.relative_to(SOURCE)
        found = lazy_imports(tree)
        if found and place.parts[0] not in ("cli", "__init__.py"):
            lazy.add(place.as_posix())
        needs[".".join(("plures", *place.with_suffix("").parts)).removesuffix(".__init__")] = own_imports(tree) - found
    assert lazy == LAZY.keys()
    assert circle({module: of - {"plures"} for module, of in needs.items() if module != "plures"}) == []


# who else touches a network outside of training, and what for; all other code asks scoring/ for outputs
NOT_SCORING = {
    "data/loading.py": "makes the DataLoader",
    "export/formats.py": "runs the exported file",
    "export/graph.py": "wraps the model that is exported",
    "sklearn.py": "standardises features",
    "sweeps/vectorized/losses.py": "learns labels",
    "sweeps/vectorized/training.py": "trains",
    "training/loop.py": "averages weights",
    "training/peak.py": "counts bytes on a blank image",
    "training/ridge.py": "solves for weights",
}


def runs_a_model(source: str) -> bool:
    names = {getattr(n, "attr", getattr(n, "id", "")) for n in ast.walk(ast.parse(source))}
    return bool(names & {"inference_mode", "no_grad", "eval", "DataLoader", "BatchHalver"})


@pytest.mark.parametrize("code", ["net.eval()", "@torch.no_grad()\ndef f(): ...", "with inference_mode(): ...",
                                  "DataLoader(d)", "BatchHalver(net, cat)"])  # fmt: skip
def test_a_module_that_runs_a_model_is_noticed(code: str):
    assert runs_a_model(code)


def test_models_are_run_over_images_in_scoring_alone():
    found = {f.relative_to(SOURCE).as_posix() for f in SOURCE.rglob("*.py") if runs_a_model(f.read_text("utf-8"))}
    assert {f for f in found if f.split("/")[0] not in ("models", "losses", "scoring")} == NOT_SCORING.keys()


def test_every_package_is_in_the_order():
    packages = {f.relative_to(SOURCE).parts[0].removesuffix(".py") for f in SOURCE.rglob("*.py")} - {"__init__"}
    assert packages <= set(PACKAGES)


@pytest.mark.parametrize("module", ["plures", "plures.cli"])
def test_import_stays_light(module: str):
    code = f"import sys, {module}; print([m for m in ('torch', 'timm', 'pandas', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


ELSEWHERE = """
import importlib, os, pkgutil, signal, sys
import torch, timm, pyarrow.parquet, huggingface_hub, PIL.Image, fsspec, filelock, rich.progress  # their own affair
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("fork", "geteuid", "getuid", "killpg", "posix_fallocate", "statvfs", "mkfifo", "sched_getaffinity"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGHUP", "SIGKILL", "SIGALRM"):
    if hasattr(signal, name):
        delattr(signal, name)
import plures
from plures.errors import PluresError
for found in pkgutil.walk_packages(plures.__path__, "plures."):
    try:
        importlib.import_module(found.name)
    except PluresError as error:
        assert "pip install" in str(error), error
    except ModuleNotFoundError as error:
        assert not error.name.startswith("plures") and error.name not in sys.modules, error
from plures.cli import main
sys.argv = ["plures", "train", "scenes", "data.train=16", "data.val=8", "data.test=8", "data.size=32", "epochs=1",
            "backbone=small_conv", "backbone.image_size=32", "workers=0", "device=cpu", "--out", sys.argv[1]]
main()
"""


@pytest.mark.slow
def test_everything_is_imported_and_trains_without_what_windows_lacks(tmp_path):
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.json").is_file()
