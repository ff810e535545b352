"""A loss of plures in a Lightning module; its memory lies in Lightning's checkpoints with the model's weights.

python examples/lightning_module.py
"""

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

import plures


class Tagger(lightning.LightningModule):
    def __init__(self, targets, lr=0.02):
        super().__init__()
        self.lr, self.model = lr, torch.nn.Linear(16, targets.shape[1])
        self.criterion = plures.losses.ROLE(expected_positives=2).bind(targets)

    def training_step(self, batch, number):
        x, y, index = batch
        terms = self.criterion.terms(self.model(x), y, index=index)
        self.log_dict(terms)
        return sum(terms.values())

    def on_train_batch_end(self, *given):
        self.criterion.step(self.optimizers().param_groups[0]["lr"])

    def configure_optimizers(self):
        return torch.optim.Adam(self.model.parameters(), lr=self.lr)


if __name__ == "__main__":
    x, targets = torch.randn(200, 16), torch.where(torch.rand(200, 5) < 0.2, 1, -1)
    loader = DataLoader(TensorDataset(x, targets, torch.arange(200)), batch_size=20, shuffle=True)
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.fit(Tagger(targets), loader)
    state = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)["state_dict"]
    print([name for name in state if name.startswith("criterion")])
