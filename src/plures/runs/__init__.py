"""The run folder: what a run is, its photographs, its card; nothing about how to train."""
