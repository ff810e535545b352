"""The library on your own table: one tag per photo in, a trained and judged model out.

python examples/train_on_own_table.py tags.csv runs/own
"""

import sys

import plures


def main(table, out):
    dataset = plures.read(table)
    present, unknown = dataset.labels.present.sum(), dataset.labels.unknown.sum()
    print(f"{len(dataset)} images, {len(dataset.classes)} classes, {present} tags, {unknown} cells unknown")

    experiment = plures.Experiment(
        data=table,
        backbone={"name": "timm", "model": "mobilenetv2_100", "pretrained": True},  # downloaded on first use
        head="linear",
        loss={"name": "role", "expected_positives": 2},  # about two things are in a photo
        stages="probe",
        epochs=15,
    )
    run = plures.train(experiment, out)

    report = plures.evaluate(run.path)
    print(f"mAP {100 * report.map:.1f} percent over {report.classes_scored} classes, {report.labels} labels")

    model = plures.load(run.path)
    image = plures.read(table).images[0]
    print(f"{model.parameter_count:,} parameters; next: plures predict {out} {image} --out found.csv")


if __name__ == "__main__":
    main(*sys.argv[1:])
