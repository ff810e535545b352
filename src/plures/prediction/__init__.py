"""Predictions of many images, streamed to files, shards or a Ray cluster."""
