"""Keywords into XMP sidecars, and out again: `plures predict --to xmp`, `plures convert --to xmp`, `plures undo`.

A photograph is never touched. A sidecar that is there is edited where its keywords stand, and every other byte stays;
a new one is called 1.jpg.xmp. What a journal lists is done after it is written whole: it holds each sidecar before and
after, so that a run that was killed can be undone like one that ended.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from plures.data.formats.xmp import FLAT, ITEM, MOST, OWN, TREES, packet_of, sidecars_of
from plures.data.paths import paths_from
from plures.data.write import copy_rights
from plures.errors import BadData, PluresError, Problem
from plures.files import parse_json, writing

RDF = ITEM.removesuffix("li")
PREFIX = {FLAT: "dc", **dict(zip(TREES, ("lr", "digiKam"), strict=True))}  # of each list of keywords
EMPTY = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
    f' <rdf:RDF xmlns:rdf="{RDF.removesuffix("}")}">\n </rdf:RDF>\n</x:xmpmeta>\n'
).encode()
TAG = re.compile(rb"""<([^\s/>]+)(?:[^>"']|"[^"]*"|'[^']*')*>""")
Way = tuple[str, ...]
Lists = dict[str, list[str]]  # the keywords of each list


@dataclass(frozen=True)
class Change:
    """One sidecar. before: its bytes, None where there is none; added: the keywords that are new in it."""

    path: Path
    before: bytes | None
    after: bytes
    added: Lists


@dataclass
class Done:
    """What was written, or would be. keywords: added, over all sidecars; kept: sidecars left alone, and why."""

    sidecars: int = 0
    new: int = 0
    keywords: int = 0
    kept: list[Problem] = field(default_factory=list)


# ------------------------------------------------------------------------------------------------------------ one text


@dataclass
class _Element:
    """An element of the text: name as NAMESPACE}NAME and as written; the bytes of its start tag, and of all of it."""

    name: str
    written: bytes
    start: int
    tag_end: int
    empty: bool
    end: int = 0
    text: str = ""
    attributes: dict[str, str] = field(default_factory=dict)
    inside: list[_Element] = field(default_factory=list)


def _parsed(text: bytes) -> _Element:
    """The outermost element of a UTF-8 text. Raises ValueError where it is no XML, or of another encoding."""
    parser = expat.ParserCreate("UTF-8", "}")
    parser.buffer_text = True
    outside = _Element("", b"", 0, 0, False)
    above = [outside]

    def declared(version: str, encoding: str | None, standalone: int) -> None:
        if encoding is not None and encoding.lower() not in ("utf-8", "utf8", "us-ascii", "utf-16"):
            raise ValueError(f"its encoding is {encoding}; UTF-8 and UTF-16 can be edited")

    def doctype(*_: Any) -> None:
        raise ValueError("a DOCTYPE, which may define entities, is not read")

    def start(name: str, attributes: dict[str, str]) -> None:
        at = parser.CurrentByteIndex
        tag = TAG.match(text, at)
        if tag is None or len(above) > 100:
            raise ValueError("nested too deeply" if tag else "a tag never ends")
        made = _Element(name, tag[1], at, tag.end(), tag[0].endswith(b"/>"), attributes=attributes)
        above[-1].inside.append(made)
        above.append(made)

    def end(name: str) -> None:
        made = above.pop()
        made.end = made.tag_end if made.empty else text.index(b">", parser.CurrentByteIndex) + 1

    def words(found: str) -> None:
        above[-1].text += found

    parser.XmlDeclHandler, parser.StartDoctypeDeclHandler = declared, doctype
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, words
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        raise ValueError(str(error)) from None
    return outside.inside[0]


def _rdf(root: _Element) -> _Element:
    todo = [root]
    while todo:
        one = todo.pop()
        if one.name == f"{RDF}RDF":
            return one
        todo += one.inside
    raise ValueError("no rdf:RDF in it")


def _properties(rdf: _Element) -> Iterator[tuple[str, _Element, _Element | None]]:
    """Each list of keywords: its name, its element, and the rdf:Bag in it, if there is one."""
    for description in rdf.inside:
        for name in PREFIX:
            if name in description.attributes:
                raise ValueError(f"its {PREFIX[name]} keywords are an attribute, not a list")
        for one in description.inside:
            if one.name in PREFIX:
                bags = [b for b in one.inside if b.name in (f"{RDF}Bag", f"{RDF}Seq", f"{RDF}Alt")]
                if not bags and (one.text.strip() or one.inside):
                    raise ValueError(f"its {PREFIX[one.name]} keywords are not a list")
                yield one.name, one, bags[0] if bags else None


def _items(bag: _Element | None) -> list[_Element]:
    return [] if bag is None else [one for one in bag.inside if one.name == ITEM]


def _in_utf8(content: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
    """The XML in a sidecar as UTF-8, and what makes the sidecar of it again: marks and blanks around it stay."""
    mark = content[:2]
    if codec := {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}.get(mark):
        text, around = _in_utf8(content[2:].decode(codec).encode())
        return text, lambda new: mark + around(new).decode().encode(codec)
    text = content.removeprefix(b"\xef\xbb\xbf").strip(b"\0 \r\n\t")
    head, _, tail = content.partition(text) if text else (content, b"", b"")
    return text, lambda new: head + new + tail


def keywords_in(content: bytes) -> Lists:
    """The keywords of each list in an XMP text, as they stand there. Raises ValueError where it cannot be read."""
    found: Lists = {}
    for name, _, bag in _properties(_rdf(_parsed(_in_utf8(content)[0]))):
        found.setdefault(name, []).extend(item.text.strip() for item in _items(bag))
    return found


def edited(content: bytes, add: Lists, drop: Callable[[str, str], bool] = lambda name, text: False) -> bytes:
    """An XMP text with keywords added at the end of their lists, and others taken out; every other byte stays.

    Args:
        content: the text, UTF-8 or UTF-16.
        add: what each list should hold; what it holds already is not added.
        drop: whether a keyword, by its list and text, is taken out.

    Raises:
        ValueError: where the text is no XMP that can be edited.
    """
    text, whole = _in_utf8(content)
    rdf = _rdf(_parsed(text))
    cuts: list[tuple[int, int, bytes]] = []
    found = list(_properties(rdf))
    had = {name: {i.text.strip() for n, _, bag in found for i in _items(bag) if n == name} for name in PREFIX}
    new = {name: [word for word in dict.fromkeys(words) if word not in had[name]] for name, words in add.items()}
    for name, one, bag in found:
        items = _items(bag)
        gone = [item for item in items if drop(name, item.text.strip())]
        words = new.pop(name, [])
        if gone and len(gone) == len(items) and not words:
            cuts.append((_blank_before(text, one.start), one.end, b""))
            continue
        cuts += [(_blank_before(text, item.start), item.end, b"") for item in gone]
        if words and bag is None:
            cuts.append((one.start, one.end, _property(name, words, _prefix(rdf), _gap(text, one), one.written)))
        elif words and bag is not None:
            gap = _gap(text, items[-1]) if items else _gap(text, bag) + b" "
            lines = b"".join(gap + _item(word, _prefix(bag)) for word in words)
            at = items[-1].end if items else bag.tag_end
            cuts.append(_expanded(text, bag, lines + gap[:-1]) if bag.empty else (at, at, lines))
    missing = {name: words for name, words in new.items() if words}
    if missing:
        gap, p = b"\n  ", _prefix(rdf)
        about = rdf.inside[0].attributes.get(f"{RDF}about", "") if rdf.inside else ""
        spaces = "".join(f' xmlns:{PREFIX[name]}="{name.partition("}")[0]}"' for name in missing)
        head = b"<%sDescription %sabout=%s%s>" % (p, p, quoteattr(about).encode(), spaces.encode())
        parts = (_property(name, words, p, gap + b" ", b"") for name, words in missing.items())
        block = b" " + head + b"".join(gap + b" " + part for part in parts) + gap + b"</%sDescription>\n " % p
        at = 0 if rdf.empty else text.rindex(b"</", rdf.tag_end, rdf.end)  # its end tag
        cuts.append(_expanded(text, rdf, b"\n " + block) if rdf.empty else (at, at, block))
    for start, end, middle in sorted(cuts, key=lambda cut: cut[:2], reverse=True):
        text = text[:start] + middle + text[end:]
    return whole(text)


def _expanded(text: bytes, one: _Element, inside: bytes) -> tuple[int, int, bytes]:
    """An empty element `<a/>` with something in it."""
    tag = text[one.start : one.tag_end - 2].rstrip()
    return one.start, one.tag_end, b"%s>%s</%s>" % (tag, inside, one.written)


def _prefix(one: _Element) -> bytes:
    """`rdf:` as this text spells it."""
    space, colon, _ = one.written.rpartition(b":")
    return space + colon


def _blank_before(text: bytes, at: int) -> int:
    return len(text[:at].rstrip(b" \t\r\n"))


def _gap(text: bytes, one: _Element) -> bytes:
    """The line end and blanks that stand before an element."""
    return text[_blank_before(text, one.start) : one.start]


def _item(word: str, prefix: bytes) -> bytes:
    return b"<%sli>%s</%sli>" % (prefix, escape(word).encode(), prefix)


def _property(name: str, words: Sequence[str], p: bytes, gap: bytes, written: bytes) -> bytes:
    """A list of keywords as an element of its own."""
    tag = written or f"{PREFIX[name]}:{name.partition('}')[2]}".encode()
    lines = b"".join(gap + b"  " + _item(word, p) for word in words)
    return b"<%s>%s <%sBag>%s%s </%sBag>%s</%s>" % (tag, gap, p, lines, gap, p, gap, tag)


# ------------------------------------------------------------------------------------------------------ of photographs


def lists_of(ways: Sequence[Way], branch: Way) -> Lists:
    """The keywords that say these tags: below a branch as ways alone, else as words, too.

    Example:
        >>> lists_of([("Animals", "Dog")], ("plures",))["http://ns.adobe.com/lightroom/1.0/}hierarchicalSubject"]
        ['plures|Animals|Dog']
    """
    lists = {name: [between.join((*branch, *way)) for way in ways] for name, between in TREES.items()}
    return lists if branch else {FLAT: [way[-1] for way in ways], **lists}


def way_of(name: str) -> Way:
    """The steps of a class: Animals/Dog is Dog inside Animals. Raises PluresError for what no keyword can hold."""
    steps = tuple(filter(None, map(str.strip, name.split("/"))))
    if not steps or "|" in name or any(ord(letter) < 32 for letter in name):
        raise PluresError(f"class {name!r} cannot be a keyword: '|' parts keywords; rename it")
    return steps


def changes(images: Sequence[str], ways: Iterator[Sequence[Way]], branch: Way, kept: list[Problem]) -> Iterator[Change]:
    """What has to change for each photograph to carry its tags: below the branch these alone, elsewhere these, too.

    kept: gets a problem for each sidecar that cannot be edited.
    """
    stems = Counter(os.path.splitext(image)[0] for image in images)
    for image, tags in zip(images, ways, strict=True):
        own = image + ".xmp"
        shared = stems[os.path.splitext(image)[0]] > 1  # 1.xmp beside 1.jpg and 1.png: whose is it
        there = [s for s in sidecars_of(image) if not shared or s.name.lower() == os.path.basename(own).lower()]
        wanted = lists_of(tags, branch)
        for path in there or [Path(own)] * bool(tags):
            try:
                before = path.read_bytes() if there else None
                if before is not None and len(before) > MOST:
                    raise ValueError("too large")
                content, add = (EMPTY, _with_those_inside(image, wanted)) if before is None else (before, wanted)
                after = edited(content, add, partial(_is_old, branch, wanted))
                old = {} if before is None else keywords_in(before)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                kept.append(Problem(str(path), None, f"cannot be edited as XMP ({reason})", "a sidecar with keywords"))
                continue
            if after != before:
                new = {
                    name: [word for word in words if word not in old.get(name, [])] for name, words in wanted.items()
                }
                yield Change(path, before, after, {name: words for name, words in new.items() if words})


def _with_those_inside(image: str, wanted: Lists) -> Lists:
    """With the keywords inside the photograph first, as some programs read a sidecar's list in their place."""
    try:
        inside = keywords_in(packet_of(image))
    except (PluresError, ValueError):
        return wanted
    return {name: [*inside.get(name, []), *words] for name, words in wanted.items()}


def _is_old(branch: Way, wanted: Lists, name: str, text: str) -> bool:
    """Whether a keyword stands below the branch, and is not wanted there."""
    if not branch or name == FLAT:
        return False
    steps = tuple(map(str.strip, text.split(TREES[name])))
    return steps[: len(branch)] == branch and len(steps) > len(branch) and text not in wanted[name]


def write_sidecars(
    images: Sequence[str],
    ways: Callable[[], Iterator[Sequence[Way]]],
    journal: Path,
    *,
    branch: str = OWN,
    skip_bad: bool = False,
    dry_run: bool = False,
) -> Done:
    """Give photographs keywords in their sidecars.

    Args:
        images: the photographs, N paths.
        ways: gives for each its tags, as steps from the outermost to the innermost.
        journal: the file that `undo` reads; it is complete before the first sidecar is written.
        branch: the keyword that all of them stand below, such as plures or plures/found; what stands below it now and
            is not among the tags goes. "": none, and nothing goes.
        skip_bad: leave sidecars alone that cannot be edited, rather than to stop before any is written.
        dry_run: count, and write nothing.

    Raises:
        BadData: naming each sidecar that cannot be edited.
    """
    done, steps = Done(), way_of(branch) if branch else ()
    for change in changes(images, ways(), steps, done.kept):
        done.sidecars += 1
        done.new += change.before is None
        done.keywords += max(map(len, change.added.values()), default=0)
    if done.kept and not skip_bad:
        raise BadData(done.kept)
    if dry_run:
        return done
    spelt = paths_from(journal.parent)
    with writing(journal) as temporary, temporary.open("w", encoding="utf-8") as lines:
        for change in changes(images, ways(), steps, []):
            before = None if change.before is None else change.before.decode("latin-1")
            entry = {"sidecar": spelt(str(change.path)), "before": before, "after": change.after.decode("latin-1")}
            lines.write(json.dumps(entry | {"added": change.added}) + "\n")
    for change in _listed(journal):
        if _content(change.path) == change.before:
            _put(change.path, change.after)
        else:
            done.sidecars -= 1
            done.kept.append(Problem(str(change.path), None, "was changed by another program meanwhile; left alone"))
    return done


def undo(journal: str | Path) -> Done:
    """Take back what a journal lists: sidecars become what they were, and new ones go.

    From a sidecar that another program has written since, only the keywords that were added are taken out; what is
    missing or undone already is passed over.

    Args:
        journal: what `plures predict --to xmp --out JOURNAL` wrote.

    Returns:
        How many sidecars were changed, how many of these removed (`new`), and those left alone.

    Raises:
        PluresError: if the file is no such journal.
    """
    done = Done()
    for change in list(_listed(Path(journal))):
        now = _content(change.path)
        if now is None or now == change.before:
            continue
        try:
            old = change.before if now == change.after else edited(now, {}, partial(_is_added, change.added))
        except ValueError as error:
            done.kept.append(Problem(str(change.path), None, f"cannot be edited as XMP ({error}); left alone"))
            continue
        if old == now:
            continue
        done.sidecars += 1
        done.keywords += max(map(len, change.added.values()), default=0)
        if old is None:
            done.new += 1
            change.path.unlink()
        else:
            _put(change.path, old)
    return done


def _is_added(added: Lists, name: str, text: str) -> bool:
    return text in added.get(name, [])


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _put(path: Path, content: bytes) -> None:
    """Write a sidecar where it lies, with the rights that it has; a link that leads there stays."""
    place = Path(os.path.realpath(path))
    with writing(place) as temporary:
        temporary.write_bytes(content)
        if place.exists():
            copy_rights(place, temporary)


def _listed(journal: Path) -> Iterator[Change]:
    """The changes of a journal. Raises PluresError where it is none."""
    number = 0
    try:
        with journal.open("rb") as lines:
            for number, line in enumerate(lines, 1):  # noqa: B007  (for the message)
                entry = parse_json(line)
                path = Path(os.path.normpath(journal.parent / entry["sidecar"]))
                before, after = entry["before"], entry["after"].encode("latin-1")
                added = {name: list(map(str, entry["added"].get(name, []))) for name in PREFIX}
                if path.suffix.lower() != ".xmp":
                    raise ValueError(f"{path.name} is no sidecar")
                yield Change(path, None if before is None else before.encode("latin-1"), after, added)
    except OSError as error:
        raise PluresError(f"{journal}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        where = f"{journal}, line {number}"
        raise PluresError(f"{where}: not a journal of sidecars ({error}); give what --to xmp --out wrote") from None
