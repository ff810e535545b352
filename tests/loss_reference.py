"""The reference numbers of the published losses (tests/reference/losses.*) as torch tensors."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plures.labels import TensorLabels
from plures.losses import Context, losses
from plures.models.outputs import Output

FOLDER = Path(__file__).parent / "reference"


@cache
def file() -> tuple[list[dict[str, Any]], Any]:
    return json.loads((FOLDER / "losses.json").read_text())["entries"], np.load(FOLDER / "losses.npz")


def entries(*names: str) -> list[dict[str, Any]]:
    """The entries of these losses where the official code itself is finite."""
    found = [entry for entry in file()[0] if entry["loss"] in names and entry["finite"]]
    assert found, names
    return found


def array(name: str) -> Tensor:
    return torch.from_numpy(np.array(file()[1][name]))


def say(entry: dict[str, Any]) -> str:
    return f"{entry['loss']}-{entry['case']}-{entry['id']}"


class Table:
    """A label state in float64 that is nothing but a tensor; remembers what was read and written."""

    def __init__(self, values: Tensor, learned: bool = False) -> None:
        self.values, self.learned = values, learned

    def rows(self, index: Tensor) -> Tensor:
        self.read = self.values[index].clone().requires_grad_(self.learned)
        return self.read

    def write(self, index: Tensor, values: Tensor) -> None:
        self.values[index] = values.detach().to(self.values.dtype)


def compare(
    entry: dict[str, Any],
    name: str,
    options: dict[str, Any],
    epoch: int = 0,
    epochs: int = 1,
    state: Table | None = None,
) -> None:
    """Value and gradient of the loss `name` with these options against the entry, within the stated tolerance."""
    x = array(entry["logits"]).requires_grad_()
    labels = TensorLabels(array(entry["labels"]))
    context = Context(epoch=epoch, epochs=epochs, index=torch.arange(len(x)), label_state=state)
    value = sum(losses.make(name, **options).compute(Output(x), labels, context).values())
    value.backward()
    close = {"rtol": 1e-7, "atol": 1e-10} if entry["case"] == "extreme" else {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(value.detach(), torch.tensor(entry["value"], dtype=torch.float64), **close)
    torch.testing.assert_close(x.grad, array(entry["grad"]), **close)
    if "grad_est" in entry:
        torch.testing.assert_close(state.read.grad, array(entry["grad_est"]), **close)
