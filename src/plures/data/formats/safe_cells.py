"""Cells that a spreadsheet would take for a formula: written with an apostrophe before them, read without it.

A cell such as `=cmd|' /C calc'!A0` runs when Excel or LibreOffice opens the file (CSV injection, CWE-1236). An
apostrophe makes it text there. Readers of tables take one apostrophe away again, so every name comes back as it was,
also one that itself begins so: it got a further apostrophe.
"""

from __future__ import annotations

import re

_FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠].", re.DOTALL)  # "-" alone is the sign for "undefined"


def guarded(text: str, formulas: bool = True) -> str:
    """The text as a spreadsheet may open it; a number stays one.

    formulas: False leaves them as they are, for other programs, and guards only what `bare` would change.

    Example:
        >>> guarded("=1+1"), guarded("cat"), guarded("-0.5")
        ("'=1+1", 'cat', '-0.5')
    """
    wanted = formulas or text.startswith("'")
    return f"'{text}" if wanted and _FORMULA.match(text) and not _is_number(text) else text


def bare(text: str) -> str:
    """What `guarded` was given.

    Example:
        >>> bare("'=1+1"), bare("'s-Hertogenbosch")
        ('=1+1', "'s-Hertogenbosch")
    """
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
