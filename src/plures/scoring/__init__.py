"""The one road from photographs to outputs: features, predictions, heat maps."""
