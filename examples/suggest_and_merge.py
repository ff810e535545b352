"""Missing tags without the page: the best suggestions go to somebody, the answers come back as a second table.

python examples/suggest_and_merge.py runs/own tags.csv completed.csv
"""

import csv
import sys
from pathlib import Path

from plures.analysis.missing import suggest
from plures.data.merge import Source, merge
from plures.data.read import read
from plures.data.write import write_table


def ask(suggestion):
    """Whether the tag is there. Here a score decides; put a person, a crowd or a larger model in its place."""
    return suggestion.score > 0.5


def main(run, table, out):
    suggestions, _ = suggest(run, table, top=50)
    answers = Path(out).with_name("answers.csv")
    with answers.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "tags", "absent"])
        for s in suggestions:
            rows.writerow([Path(s.image).absolute(), s.tag if ask(s) else "", "" if ask(s) else s.tag])

    merged = merge([Source("first", read(table)), Source("answers", read(str(answers)))])
    write_table(merged.dataset, out)
    labels = merged.dataset.labels
    print(f"{out}: {labels.present.sum()} present, {labels.absent.sum()} absent, {labels.unknown.sum()} unknown")
    print(f"{len(merged.conflicts)} conflicts, left unknown")


if __name__ == "__main__":
    main(*sys.argv[1:])
