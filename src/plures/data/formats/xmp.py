"""Keywords of photo managers (Lightroom, digiKam, darktable, Immich, PhotoPrism, Windows), in photographs and sidecars.

Read are XMP `dc:subject`, `lr:hierarchicalSubject` and `digiKam:TagsList`, IPTC Keywords and EXIF XPKeywords, inside a
photograph and in `1.jpg.xmp` or `1.xmp` beside it, all together. Present: a keyword. Absent: nothing. Unknown:
everything else. What plures itself wrote below `plures/` is no answer of a person and is left out, unless `branch` says
otherwise.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, IptcImagePlugin

from plures.data.dataset import Dataset, formats
from plures.data.formats.annotations import Node, parse_xml
from plures.data.photos import list_images, open_header, unread_below
from plures.errors import PluresError, Problem
from plures.labels import PRESENT, UNKNOWN, Labels

OWN = "plures"  # the branch below which plures writes
FLAT = "http://purl.org/dc/elements/1.1/}subject"
TREES = {  # and what stands between the steps of a way
    "http://ns.adobe.com/lightroom/1.0/}hierarchicalSubject": "|",
    "http://www.digikam.org/ns/1.0/}TagsList": "/",
}
OTHER_TREES = {  # which are read, and never written
    **TREES,
    "http://ns.microsoft.com/photo/1.0/}LastKeywordXMP": "/",
    "http://ns.microsoft.com/photo/1.2/}LastKeywordXMP": "/",
    "http://ns.iview-multimedia.com/mediapro/1.0/}CatalogSets": "|",
}
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
ITEM = RDF + "li"
NUMBERED = re.compile(re.escape(RDF) + r"_\d+")  # an item as of old
XP_KEYWORDS = 0x9C9E
MOST = 64_000_000  # bytes of a sidecar


@dataclass
class Keywords:
    """flat: words; ways: words from the outermost to the innermost; wrong: why some could not be read."""

    flat: set[str] = field(default_factory=set)
    ways: set[tuple[str, ...]] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)


@formats.register("xmp", title="Keywords of photo managers: XMP, IPTC and EXIF in photographs, and sidecars")
class Xmp:
    """nested: what a keyword inside others (Animals|Dog) is: leaf, the class Dog; path, the class Animals/Dog; both,
    the classes Animals and Dog. branch: read only the keywords below this one, such as Animals."""

    def __init__(self, *, nested: Literal["leaf", "path", "both"] = "leaf", branch: str = "") -> None:
        if nested not in ("leaf", "path", "both"):
            raise PluresError(f"xmp: no nested={nested}; choose from: leaf, path, both")
        self.nested, self.branch = nested, tuple(filter(None, branch.replace("|", "/").split("/")))

    def recognises(self, path: str) -> bool:
        """Never: a folder of photographs may hold keywords of any kind, so that a person names it, as in xmp:DIR."""
        return False

    def reason(self, path: str) -> str:
        """What is read from this folder."""
        return "keywords in photographs and in the sidecars beside them"

    def read(self, path: str) -> tuple[Dataset, list[Problem]]:
        if not os.path.isdir(path):
            raise PluresError(f"xmp: '{path}' is no folder; expected one with photographs that carry keywords")
        images, problems = list_images(path), list[Problem]()
        tags, own = list[set[str]](), 0
        for image in images:
            found = keywords_of(image)
            problems += [Problem(image, None, what, severity="notice") for what in found.wrong]
            names, skipped = self._classes(found)
            tags.append(names)
            own += skipped
        if own:
            what = f"{own:,} keywords below '{OWN}/' that plures wrote are not read; data.branch={OWN} reads them alone"
            problems.append(Problem(path, None, what, severity="notice"))
        classes = tuple(sorted({name for names in tags for name in names}))
        place = {name: column for column, name in enumerate(classes)}
        values = np.full((len(images), len(classes)), UNKNOWN, np.int8)  # [N, K]
        for row, names in enumerate(tags):
            values[row, [place[name] for name in names]] = PRESENT
        made = Dataset(images, Labels(values), classes, name=Path(path).resolve().name)
        return made, [*problems, *unread_below(path)]

    def _classes(self, found: Keywords) -> tuple[set[str], int]:
        """The classes of a photograph, and how many keywords of plures' own were left out."""
        inside = {word for way in found.ways for word in way}
        words = found.flat if self.nested != "path" else found.flat - inside
        ways = {*found.ways, *((word,) for word in words)}
        if self.branch:
            size = len(self.branch)
            ways = {way[size:] for way in ways if way[:size] == self.branch and len(way) > size}
            own = 0
        else:
            mine = {way for way in found.ways if way[0] == OWN}
            written = {word for way in mine for word in way} - {word for way in found.ways - mine for word in way}
            ways = {way for way in ways - mine if len(way) > 1 or way[0] not in written}
            own = sum(len(way) > 1 for way in mine)
        if self.nested == "path":
            return {"/".join(way) for way in ways}, own
        return {word for way in ways for word in (way if self.nested == "both" else way[-1:])}, own


def keywords_of(image: str) -> Keywords:
    """The keywords of a photograph, and those in its sidecars."""
    found = Keywords()
    try:
        with open_header(image) as opened:
            _inside(opened, found)
    except PluresError as error:
        found.wrong.append(str(error).removeprefix(f"{image}: "))
    for sidecar in sidecars_of(image):
        try:
            if sidecar.stat().st_size > MOST:
                raise ValueError("too large")
            add_xmp(sidecar.read_bytes(), found)
        except (OSError, ValueError) as error:
            found.wrong.append(f"{sidecar.name} cannot be read as XMP ({error})")
    return found


def sidecars_of(image: str | Path) -> list[Path]:
    """1.jpg.xmp, as darktable and digiKam name it, and 1.xmp, as Lightroom does: those that are there."""
    path = Path(image)
    places = [path.with_name(path.name + end) for end in (".xmp", ".XMP")]
    places += [path.with_suffix(end) for end in (".xmp", ".XMP")]
    found: list[Path] = []
    for place in places:
        if place.is_file() and not any(place.samefile(other) for other in found):
            found.append(place)
    return found


def add_xmp(content: bytes, found: Keywords) -> None:
    """Add the keywords of an XMP packet. Raises ValueError where it is no XML."""
    content = content.strip(b"\0 \r\n\t") if not content.startswith((b"\xff\xfe", b"\xfe\xff")) else content
    for node in parse_xml(content).iter():
        short = [(name, [value.strip()]) for name, value in node.attrib.items()]  # a property without a list
        for name, texts in [(node.tag, _items(node)), *short]:
            if name == FLAT:
                found.flat.update(filter(None, texts))
            elif name in OTHER_TREES:
                ways = (tuple(filter(None, map(str.strip, text.split(OTHER_TREES[name])))) for text in texts)
                found.ways.update(way for way in ways if way)


def _items(node: Any) -> list[str]:
    """The texts of a property: the items of its list, or its own."""
    assert isinstance(node, Node)
    if node.tag != FLAT and node.tag not in OTHER_TREES:
        return []
    items = [item for item in node.iter() if item.tag == ITEM or NUMBERED.fullmatch(item.tag)] or [node]
    values = [
        [item.text, item.get(RDF + "value"), *(one.text for one in item if one.tag == RDF + "value")] for item in items
    ]
    texts = ["".join(filter(None, some)).strip() for some in values]
    return [text for text in texts if text]


def packet_of(image: str) -> bytes:
    """The XMP inside a photograph, b"" where it has none. Raises PluresError where it cannot be opened."""
    with open_header(image) as opened:
        return _packet(opened)


def _packet(image: Image.Image) -> bytes:
    packet = next((image.info[key] for key in ("xmp", "XML:com.adobe.xmp") if image.info.get(key)), b"")
    tagged = getattr(image, "tag_v2", None)
    if not packet and tagged is not None and 700 in tagged:
        packet = tagged[700]
    return packet.encode() if isinstance(packet, str) else bytes(packet)


def _inside(image: Image.Image, found: Keywords) -> None:
    """Add the keywords that an open photograph carries."""
    try:
        if packet := _packet(image):
            add_xmp(packet, found)
    except (ValueError, TypeError) as error:
        found.wrong.append(f"its XMP cannot be read ({error})")
    try:
        records = IptcImagePlugin.getiptcinfo(image) or {}  # type: ignore[arg-type]  # any opened image will do
        words = records.get((2, 25), [])
        coded = records.get((1, 90), b"")
        for word in words if isinstance(words, list) else [words]:
            text = _decoded(word, utf8=coded == b"\x1b%G").strip(" \0")
            found.flat.update([text] if text else [])
    except Exception as error:  # Pillow's reader of IPTC raises whatever a damaged block leads to
        found.wrong.append(f"its IPTC keywords cannot be read ({type(error).__name__})")
    try:
        value = image.getexif().get(XP_KEYWORDS, b"")
        raw = bytes(value) if isinstance(value, bytes | tuple) else b""
        found.flat.update(filter(None, (word.strip(" \0") for word in raw.decode("utf-16-le", "replace").split(";"))))
    except Exception as error:  # the same of EXIF
        found.wrong.append(f"its EXIF keywords cannot be read ({type(error).__name__})")


def _decoded(word: bytes, utf8: bool) -> str:
    try:
        return word.decode("utf-8")
    except UnicodeDecodeError:
        return word.decode("utf-8" if utf8 else "cp1252", "replace")
