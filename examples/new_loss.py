"""A loss of your own: a class in your own package, named by its import; no file of plures changes.

python examples/new_loss.py tags.csv runs/mine
"""

import sys
from dataclasses import dataclass

import torch.nn.functional as F

import plures


@dataclass(eq=False)
class Hopeful(plures.losses.Loss):
    """Assume negative, but hardly while little has been learnt; trust: the weight of an unknown label at the end."""

    trust: float = 0.3

    def compute(self, output, labels, context):
        x = output.logits  # [B, K]
        weight = labels.absent + self.trust * context.progress * labels.unknown
        return {  # named terms; their sum is the loss
            "present": (labels.present * F.softplus(-x)).mean(),
            "absent": (weight * F.softplus(x)).mean(),
        }


if __name__ == "__main__":
    table, out = sys.argv[1:]
    loss = {"name": "new_loss:Hopeful", "trust": 0.5}  # module:attribute; on the command line loss=new_loss:Hopeful
    run = plures.train(plures.Experiment(data=table, loss=loss, epochs=5), out)
    print(f"mAP {100 * plures.evaluate(run.path).map:.1f} percent")
