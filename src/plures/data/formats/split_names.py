"""The words that people use for the training, validation and test split: of a column's cells and of folders alike."""

from __future__ import annotations

WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
UNDERSTOOD = "train, training, val, valid, validation, dev, test, testing, in any case, or blank for no split"
VALID = {"1": "val", "1.0": "val", "true": "val", "0": "train", "0.0": "train", "false": "train"}  # of `is_valid`


def split_name(word: str) -> str | None:
    """`train`, `val` or `test` for any spelling of it, None for another word.

    Example:
        >>> split_name("Validation"), split_name("fold 3")
        ('val', None)
    """
    return WORDS.get(word.strip().casefold())
