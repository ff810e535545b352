"""Data formats: one file each, found by name. See `plures.data.dataset.Format` for what a format is."""
