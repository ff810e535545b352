"""CVAT's "CVAT for images 1.1" XML.

Present: the label of a tag, or of a shape (box, polygon, ...), of the image. Absent: nothing, or with `complete` every
other label. Unknown: everything else.
"""

from __future__ import annotations

from pathlib import Path

from plures.data.dataset import Dataset, formats
from plures.data.formats.annotations import Export, Node, Photo, exports_at, holds, load_xml, read_exports, tails
from plures.data.formats.split_names import split_name
from plures.errors import BadData, PluresError, Problem

EXPECTED = "an export 'CVAT for images 1.1'"
SHAPES = ("tag", "box", "polygon", "polyline", "points", "cuboid", "ellipse", "mask", "skeleton")


@formats.register("cvat", title='CVAT\'s "CVAT for images" XML: tags, and the labels of shapes')
class Cvat:
    """complete: every label that an image does not carry is absent, also of one without annotations. images: the
    folder of the photographs (the file's own, or images/ in it)."""

    def __init__(self, *, complete: bool = False, images: str = "") -> None:
        self.complete, self.images = complete, images

    def recognises(self, path: str) -> bool:
        return bool(_files(path))

    def reason(self, path: str) -> str:
        """Why this path is read as CVAT's XML."""
        return f"{_files(path)[0][1].name}: XML with annotations of images, as CVAT writes it"

    def read(self, path: str) -> tuple[Dataset, list[Problem]]:
        files = _files(path) or ([("", Path(path))] if Path(path).is_file() else [])
        if not files:
            raise PluresError(f"cvat: no XML with annotations of images at '{path}'; expected {EXPECTED}")
        return read_exports(files, _read, Path(path).name, self.images, complete=self.complete)


def _files(path: str) -> list[tuple[str, Path]]:
    return exports_at(
        path, (".xml",), lambda file: holds(file, rb"<annotations[\s>]", rb"<(image|track)\s", first=b"<")
    )


def _read(file: Path) -> Export:
    root = load_xml(file, EXPECTED)
    if root.tag != "annotations":
        raise BadData([Problem(str(file), root.line, f"the element <{root.tag}>", f"<annotations>, {EXPECTED}")], False)
    if root.find("track") is not None:
        raise BadData([Problem(str(file), None, "tracks of a video are not read", EXPECTED)], False)
    export = Export(file)
    version = (root.findtext("version") or "1.1").strip()
    if version != "1.1":
        export.notice(f"version {version} of CVAT's export is not known here; it is read as 1.1")
    # <labels> of a job, a task or a project; a skeleton's points (with <parent>) are no labels of images
    declared = [node for node in root.iter("label") if node.findtext("name") and node.find("parent") is None]
    export.classes = list(dict.fromkeys((node.findtext("name") or "").strip() for node in declared))
    for image in root.findall("image"):
        assert isinstance(image, Node)
        name = image.get("name") or ""
        if not name:
            export.problem(image.line, "an <image> without a name", '<image name="1.jpg">')
            continue
        found, usable = list[str](), True
        for node in image:
            assert isinstance(node, Node)
            label = (node.get("label") or "").strip()
            if node.tag not in SHAPES:
                export.notice(f"the element <{node.tag}> is not understood", node.line)
            elif not label:
                export.problem(node.line, f"a <{node.tag}> without a label", f'<{node.tag} label="cat">')
                usable = False
            else:
                found.append(label)
            if node.find("attribute") is not None:
                export.notice("attributes of tags and shapes are not read")
        if usable:
            split = split_name(image.get("subset") or "") or ""
            export.photos.append(Photo(tails(name), image.line, found, split=split))
    if not export.photos and not export.problems:
        export.problem(None, "no <image>", EXPECTED)
    return export
