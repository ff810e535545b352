"""The oldest versions that are tested are those that pyproject.toml allows."""

import re
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
PROJECT = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
TOOLS = {"ruff", "mypy", "pandas-stubs", "types-pyyaml", "pre-commit", "hatchling"}  # look at the code, do not run it


def test_the_oldest_versions_are_the_lower_bounds():
    extras = PROJECT["optional-dependencies"]
    lines = [line for name in extras.keys() - {"all", "docs"} for line in extras[name]]
    allowed = {}
    for line in [*PROJECT["dependencies"], *lines]:
        if not line.startswith("plures["):
            name, bound = re.match(r"([\w-]+)(?:\[\w+\])?(?:>=([\d.]+))?$", line).groups()
            allowed[name.lower()] = bound
    tested = dict(line.split("==") for line in (HERE / "oldest.txt").read_text().splitlines() if "==" in line)
    assert tested.keys() == allowed.keys() - TOOLS
    for name, version in tested.items():
        assert f"{version}.0.0".startswith(f"{allowed[name]}."), (name, version, allowed[name])
