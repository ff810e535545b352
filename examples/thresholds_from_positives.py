"""From which probability on is a tag called? Chosen from held-out tags alone: nothing needs to be known to be absent.

python examples/thresholds_from_positives.py runs/own
"""

import sys

from plures.analysis.thresholds import choose_thresholds


def main(run):
    choice = choose_thresholds(run, source="positives", objective="recall=0.8")  # miss at most one in five
    for c in choice.per_class:
        note = f"  (of all classes together: {c.pooled})" if c.pooled else ""
        print(f"{c.name}: from {c.threshold:.3f} on; about {100 * c.called:.0f} % of the photos{note}")
    print(f"{choice.tags_called:.2f} tags per photo. {choice.thresholds.assumes} {choice.thresholds.guarantees}")
    print(f"kept in {run}/thresholds.json: predict, evaluate, export and the pages use it")


if __name__ == "__main__":
    main(*sys.argv[1:])
