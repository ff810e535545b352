"""A loss of your own in one file: defined, named, and trained with at once; no file of plures changes.

python examples/new_loss.py tags.csv runs/mine
"""

import sys
from dataclasses import dataclass

import torch.nn.functional as F

import plures
from plures.losses import losses


@losses.part("hopeful", title="Assume negative, but hardly while little has been learnt", source="this example")
@dataclass(frozen=True)
class Hopeful:
    """trust: the weight of an unknown label as a negative at the end of training; at the beginning it is 0."""

    trust: float = 0.3

    needs = frozenset()  # or {"embeddings"}, {"attention"}, {"label_state"}, ...

    def __call__(self, output, labels, context):
        x = output.logits  # [B, K]
        weight = labels.absent + self.trust * context.progress * labels.unknown
        return {  # named terms; their sum is the loss
            "present": (labels.present * F.softplus(-x)).mean(),
            "absent": (weight * F.softplus(x)).mean(),
        }


if __name__ == "__main__":
    table, out = sys.argv[1:]
    run = plures.train(plures.Experiment(data=table, loss={"name": "hopeful", "trust": 0.5}, epochs=5), out)
    print(f"mAP {100 * plures.evaluate(run.path).map:.1f} percent")
