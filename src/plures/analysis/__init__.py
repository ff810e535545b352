"""What a trained run says: evaluation, thresholds, missing labels, localisation."""
