"""Which of ImageNet's 1,000 classes a class of one's own is made of, by its names.

ImageNet names every class by several terms and a definition (they come with timm): "tiger cat: a cat having a striped
coat". A class `cat` is made of those that are a cat by a term (its whole, or its last word) or by definition (the noun
before "having"). WORDS adds common words that ImageNet does not use, and NOT takes out terms that mislead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from timm.data import ImageNetInfo  # type: ignore[attr-defined]

CLASSES = 1000
# words of everyday -> ImageNet's own (numbers: a range of classes, as in their order)
WORDS: dict[str, tuple[str | tuple[int, int], ...]] = {
    "dog": ((151, 268),),
    "cat": ((281, 285),),
    "bird": ((7, 24), (80, 100), (127, 146)),
    "fish": ((0, 6), (389, 397)),
    "snake": ((52, 68),),
    "lizard": ((38, 48),),
    "turtle": ((33, 37),),
    "frog": ((30, 32),),
    "spider": ((72, 77),),
    "insect": ((300, 326),),
    "butterfly": ((321, 326),),
    "bear": ((294, 297),),
    "monkey": ((370, 382),),
    "ape": ((365, 369),),
    "reptile": ((33, 68),),
    "cow": ("ox",),
    "cattle": ("ox",),
    "rabbit": ((330, 332),),
    "pig": ("hog", "wild boar"),
    "goat": ("ibex",),
    "elephant": ("Indian elephant", "African elephant"),
    "horse": ("sorrel", "horse cart"),
    "sheep": ("ram", "bighorn"),
    "aeroplane": ("airliner", "warplane"),
    "airplane": ("airliner", "warplane"),
    "plane": ("airliner", "warplane"),
    "bicycle": ("bicycle-built-for-two", "mountain bike"),
    "bike": ("bicycle-built-for-two", "mountain bike"),
    "motorbike": ("moped", "motor scooter"),
    "motorcycle": ("moped", "motor scooter"),
    "car": ("beach wagon", "cab", "convertible", "jeep", "limousine", "minivan", "Model T", "racer", "sports car"),
    "truck": ("fire engine", "garbage truck", "moving van", "pickup", "tow truck", "trailer truck"),
    "bus": ("minibus", "school bus", "trolleybus"),
    "train": ("bullet train", "electric locomotive", "steam locomotive", "passenger car", "freight car"),
    "boat": ("canoe", "fireboat", "gondola", "lifeboat", "speedboat", "yawl", "catamaran", "trimaran", "schooner"),
    "ship": ("aircraft carrier", "container ship", "liner", "pirate", "schooner", "wreck"),
    "sofa": ("studio couch",),
    "couch": ("studio couch",),
    "table": ("dining table",),
    "tv": ("television", "monitor", "screen"),
    "tv monitor": ("television", "monitor", "screen"),
    "television": ("television",),
    "potted plant": ("pot",),
    "houseplant": ("pot",),
    "flower": ("daisy", "yellow lady's slipper", "rapeseed"),
    "person": ("ballplayer", "groom", "scuba diver"),
    "people": ("ballplayer", "groom", "scuba diver"),
    "phone": ("cellular telephone", "dial telephone", "pay-phone"),
    "computer": ("desktop computer", "laptop", "notebook", "hand-held computer"),
    "bag": ("backpack", "mailbag", "plastic bag", "purse"),
    "mountain": ("alp", "volcano"),
    "sea": ("seashore", "sandbar", "coral reef", "promontory"),
    "ocean": ("seashore", "sandbar", "coral reef", "promontory"),
    "beach": ("seashore", "sandbar"),
    "lake": ("lakeside",),
    "desert": ("sandbar",),
    "mushroom": ("mushroom", "agaric", "bolete", "gyromitra", "stinkhorn", "earthstar", "hen-of-the-woods"),
    "fruit": ((948, 957),),
    "pizza": ("pizza",),
    "house": ("boathouse", "mobile home", "yurt"),
    "church": ("church", "monastery", "bell cote"),
    "tower": ("beacon", "water tower", "obelisk"),
    "bridge": ("steel arch bridge", "suspension bridge", "viaduct"),
}
NOT = {
    "cat": ("madagascar cat", "bear cat", "cat bear"),
    "horse": ("river horse",),
    "car": ("freight car", "passenger car", "trolley car", "tow car", "tramcar"),
}
AFTER_NOUN = r"\b(?:with|having|that|which|for|used|in|to|from|noted|whose|resembling|where|of|on|by)\b|[;(,]"


def match(names: Iterable[str]) -> list[int]:
    """The ImageNet classes, by number, that these names of one class mean; none where they mean none."""
    found: set[int] = set()
    for name in names:
        words = _words(name)
        for form in {words, *_singular(words)}:
            found |= set(_by_word().get(form, ()))
            found |= _of_everyday("".join(form))
    return sorted(found)


def _of_everyday(squeezed: str) -> set[int]:
    """By a word of WORDS or a whole term, written without blanks."""
    found = {number for term, those in _by_term().items() if "".join(term) == squeezed for number in those}
    for word, those in WORDS.items():
        if word.replace(" ", "") == squeezed:
            for one in those:
                found |= set(range(one[0], one[1] + 1)) if isinstance(one, tuple) else set(_by_term()[_words(one)])
    return found


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[a-z]+", text.lower()))


def _singular(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    if not words:
        return []
    *first, last = words
    ends = [last[: -len(end)] + new for end, new in (("ies", "y"), ("es", ""), ("s", "")) if last.endswith(end)]
    return [(*first, end) for end in ends if len(end) > 2]


@cache
def _by_term() -> dict[tuple[str, ...], list[int]]:
    """Each term of ImageNet's -> its classes ("crane" and "maillot" have two)."""
    terms: dict[tuple[str, ...], list[int]] = {}
    for number, (said, _) in enumerate(_descriptions()):
        for term in said:
            terms.setdefault(term, []).append(number)
    return terms


@cache
def _by_word() -> dict[tuple[str, ...], list[int]]:
    """Each term, last word or two of a term, and noun of a definition -> the classes that are of this kind."""
    found: dict[tuple[str, ...], list[int]] = {}
    for number, (said, noun) in enumerate(_descriptions()):
        ends = {term[start:] for term in said for start in range(len(term)) if not _misleads(term, term[start:])}
        for end in {*ends, *({noun, *_singular(noun)} if noun else ())}:
            if number not in found.setdefault(end, []):
                found[end].append(number)
    return found


def _misleads(term: tuple[str, ...], end: tuple[str, ...]) -> bool:
    return " ".join(term) in NOT.get(" ".join(end), ())


@cache
def _descriptions() -> list[tuple[list[tuple[str, ...]], tuple[str, ...]]]:
    """The terms of each class, and the noun that its definition begins with."""
    info, described = ImageNetInfo(), []
    for number in range(CLASSES):
        said, _, definition = info.index_to_description(number, detailed=True).partition(": ")
        before = _words(re.split(AFTER_NOUN, definition)[0])
        described.append(([words for term in said.split(",") if (words := _words(term))], before[-1:]))
    return described
