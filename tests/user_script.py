"""A user's program with types, for `make check` to look at: what plures gives away has types of its own."""

import plures
from plures.metrics.report import ClassResult


def weakest(table: str, out: str) -> tuple[float, ClassResult]:
    dataset: plures.Dataset = plures.read(table)
    experiment = plures.Experiment(data=table, loss={"name": "role", "expected_positives": 2}, lr=1e-3)
    run: plures.Run = plures.train(experiment, out, dataset=dataset)
    report = plures.evaluate(run.path, split="val")
    model: plures.Model = plures.load(run.path)
    assert model.classes == dataset.classes
    return report.map, min(report.per_class, key=lambda one: one.average_precision)
