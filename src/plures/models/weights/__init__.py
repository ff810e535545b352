"""Weights from elsewhere: released checkpoints and hubs."""
