"""Many linear heads trained at once."""
