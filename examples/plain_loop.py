"""A loss of plures in a plain torch loop: ROLE, which keeps a memory of the training labels.

python examples/plain_loop.py
"""

import torch

import plures

features, truth = torch.randn(200, 16), torch.randn(16, 5)
present = features @ truth > 1  # [N, K]
targets = torch.where(present & (torch.rand(200, 5) < 0.5), 1, -1)  # half of the tags are given, nothing is absent
model = torch.nn.Linear(16, 5)
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
criterion = plures.losses.ROLE(expected_positives=2).bind(targets)

for _ in range(20):
    for index in torch.randperm(200).split(20):
        loss = criterion(model(features[index]), targets[index], index=index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        criterion.step(lr=0.02)  # the memory learns, too; for a loss without one this does nothing

print(f"{((model(features) > 0) == present).float().mean():.0%} of all labels are right")
