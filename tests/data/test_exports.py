"""What annotation tools, dataset hubs and photo managers write: small exports made here, and the real cases."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from plures.data.formats.annotations import parse_xml
from plures.data.read import find_format, read, reason
from plures.errors import BadData, PluresError
from shared import SHARED, needs_shared

EXIF_KEYWORDS = 0x9C9E


def photos(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(folder / name)
    return folder


def cells(data) -> dict[str, dict[str, int]]:
    """By the photograph's name, the labels that are known of it."""
    named = {}
    for image, row in zip(data.images, data.labels.values.tolist(), strict=True):
        known = {name: code for name, code in zip(data.classes, row, strict=True) if code >= 0}
        assert Path(image).is_file()
        named[Path(image).name] = known
    return named


def says(spec: str, **options) -> str:
    with pytest.raises(PluresError) as raised:
        read(spec, **options)
    if not isinstance(raised.value, BadData):
        return str(raised.value)
    return " | ".join(f"{Path(p.file).name}, {p.row}: {p.what}; {p.expected}" for p in raised.value.problems)


# ------------------------------------------------------------------------------------------------------ Hugging Face


def test_metadata_jsonl_in_split_folders(tmp_path):
    photos(tmp_path, "train/1.png", "train/2.png", "validation/3.png")
    lines = ['{"file_name": "1.png", "labels": ["cat", "dog"], "boxes": [{"x": 1}]}', '{"file_name": "2.png"}']
    (tmp_path / "train/metadata.jsonl").write_text("\n".join(lines))
    (tmp_path / "validation/metadata.jsonl").write_text('{"file_name": "3.png", "labels": ["dog"]}\n')
    data = read(str(tmp_path))
    assert cells(data) == {"1.png": {"cat": 1, "dog": 1}, "2.png": {}, "3.png": {"dog": 1}}
    assert data.splits.tolist() == ["train", "train", "val"]
    assert reason(str(tmp_path)).startswith("format huggingface: by what lies there; 2 files in split folders")
    assert any("'boxes' holds are objects" in problem.what for problem in data.problems)


def test_metadata_jsonl_with_a_word_a_class_each_and_absent_tags(tmp_path):
    photos(tmp_path, "1.png", "2.png")
    file = tmp_path / "any name.jsonl"
    file.write_text('{"file_name": "1.png", "label": "cat"}\n\n{"file_name": "2.png", "label": null}\n')
    assert cells(read(str(file))) == {"1.png": {"cat": 1}, "2.png": {}}
    file.write_text('{"file_name": "1.png", "cat": 1, "dog": 0}\n{"file_name": "2.png", "cat": null, "dog": true}\n')
    assert cells(read(str(file))) == {"1.png": {"cat": 1, "dog": 0}, "2.png": {"dog": 1}}
    file.write_text('{"file_name": "1.png", "tags": ["a"], "absent": ["b"]}\n[1]\n{"file_name": "2.png", "tags": []}\n')
    assert "any name.jsonl, 2: a line that cannot be read (list, no object)" in says(str(file))
    assert cells(read(str(file), skip_bad=True)) == {"1.png": {"a": 1, "b": 0}, "2.png": {}}


@pytest.mark.parametrize("feature", [{"feature": "X", "_type": "Sequence"}, {"feature": "X", "_type": "List"}, ["X"]])
def test_class_labels_of_parquet_are_shown_by_name(tmp_path, feature):
    photos(tmp_path, "1.png", "2.png", "3.png")
    label = {"names": ["cat", "dog", "sofa"], "_type": "ClassLabel"}
    said = json.dumps({"info": {"features": {"labels": feature}}}).replace('"X"', json.dumps(label))
    table = pa.table({"file_name": ["1.png", "2.png", "3.png"], "labels": pa.array([[0, 2], [], None])})
    pq.write_table(table.replace_schema_metadata({"huggingface": said}), tmp_path / "metadata.parquet")
    data = read(str(tmp_path))
    assert cells(data) == {"1.png": {"cat": 1, "sofa": 1}, "2.png": {}, "3.png": {}}
    table = pa.table({"file_name": ["1.png"], "labels": pa.array([[3]])})
    pq.write_table(table.replace_schema_metadata({"huggingface": said}), tmp_path / "metadata.parquet")
    assert "column 'labels' holds 3, and the file names 3 classes; 0 to 2" in says(str(tmp_path))


def test_a_class_label_per_photograph_inside_parquet(tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (8, 6)).save(picture, "PNG")
    image = pa.array([{"bytes": picture.getvalue(), "path": None}] * 3)
    label = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = pa.table({"image": image, "label": pa.array([1, 0, -1])})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(label)}), tmp_path / "train.parquet")
    data = read(str(tmp_path / "train.parquet"))
    assert (data.classes, data.labels.values.tolist()) == (("cat", "dog"), [[-1, 1], [1, -1], [-1, -1]])


# --------------------------------------------------------------------------------------------------- CVAT and Datumaro

CVAT = """<?xml version="1.0"?><annotations><version>{version}</version><meta><job><labels>
<label><name>cat</name></label><label><name>dog</name></label></labels></job></meta>
<image id="0" name="a/1.png" subset="Validation"><tag label="dog"><attribute name="x">1</attribute></tag></image>
<image id="1" name="2.png"></image>
{more}</annotations>"""


def test_cvat_tags_and_shapes(tmp_path):
    photos(tmp_path, "images/a/1.png", "images/2.png", "images/3.png")
    file = tmp_path / "what.xml"
    file.write_text(CVAT.format(version="1.1", more='<image name="3.png"><box label="bird"/><odd/></image>'))
    data = read(str(tmp_path))
    assert data.classes == ("cat", "dog", "bird")
    assert cells(data) == {"1.png": {"dog": 1}, "2.png": {}, "3.png": {"bird": 1}}
    assert data.splits.tolist() == ["val", "", ""]
    said = [problem.what for problem in data.problems]
    assert "attributes of tags and shapes are not read" in said
    assert "the element <odd> is not understood" in said
    assert cells(read(str(file), complete=True))["2.png"] == {"cat": 0, "dog": 0, "bird": 0}
    file.write_text(CVAT.format(version="9", more='<image name="3.png"><tag/></image>\n<image/>'))
    assert "what.xml, 5: a <tag> without a label" in (found := says(str(file)))
    assert "what.xml, 6: an <image> without a name" in found
    assert "version 9 of CVAT's export is not known" in found


def test_xml_that_defines_entities_is_refused(tmp_path):
    laughs = '<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><annotations><image name="&b;"/></annotations>'
    for text in (laughs, laughs.encode("utf-16").decode("utf-16")):
        with pytest.raises(ValueError, match="DOCTYPE"):
            parse_xml(text.encode("utf-16" if text is laughs else "utf-8"))
    (tmp_path / "a.xml").write_text(laughs)
    assert "a DOCTYPE, which may define entities, is not read" in says(f"cvat:{tmp_path}/a.xml")
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_xml(b"<a>" * 10_000)


def datumaro(folder: Path, name: str, items) -> None:
    labels = {"label": {"labels": [{"name": "cat"}, {"name": "dog"}]}}
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / name).write_text(json.dumps({"info": {}, "categories": labels, "items": items}))


def test_datumaro_subsets(tmp_path):
    photos(tmp_path, "images/train/1.png", "images/val/1.png")
    box = {"type": "bbox", "label_id": 0, "bbox": [1, 2, 3, 4]}
    one = {"id": "1", "annotations": [{"type": "label", "label_id": 1}, box], "image": {"path": "1.png"}}
    datumaro(tmp_path, "train.json", [one])
    datumaro(tmp_path, "val.json", [{"id": "1", "annotations": [{"type": "caption", "caption": "x"}]}])
    data = read(str(tmp_path))
    assert data.labels.values.tolist() == [[1, 1], [-1, -1]]
    assert data.splits.tolist() == ["train", "val"]
    assert [Path(image).parent.name for image in data.images] == ["train", "val"]
    assert any("'caption' without label_id is not understood" in p.what and p.row == 1 for p in data.problems)
    datumaro(tmp_path, "val.json", [{"id": "1", "annotations": [{"type": "label", "label_id": 2}]}, {"name": 3}])
    found = says(str(tmp_path))
    assert "val.json, 1: label_id 2; 0 to 1" in found
    assert "val.json, 2: item 2 has no id" in found


def test_imagenet_txt(tmp_path):
    photos(tmp_path, "images/1.png", "images/a b.png", "images/3.png")
    (tmp_path / "synsets.txt").write_text("cat\nmy dog\n")
    (tmp_path / "train.txt").write_text('1.png 0 1\n"a b.png" 1\n')
    (tmp_path / "valid.txt").write_text("3.png 0\n")
    data = read(str(tmp_path))
    assert cells(data) == {"1.png": {"cat": 1, "my dog": 1}, "a b.png": {"my dog": 1}, "3.png": {"cat": 1}}
    assert data.splits.tolist() == ["train", "train", "val"]
    (tmp_path / "valid.txt").write_text("3.png 2\n")
    assert "valid.txt, 1: class number 2; 0 to 1" in says(str(tmp_path))


# -------------------------------------------------------------------------------------------------------- Label Studio


def task(image: str, *choices: str, **more):
    region = {"from_name": "c", "to_name": "image", "type": "choices", "value": {"choices": [*choices]}}
    return {"data": {"image": image}, "annotations": [{"result": [region] if choices else []}], **more}


def test_label_studio_json(tmp_path):
    names = ["0123abcd-1.png", "2.png", "deep/3.png", "4.png", "5.png", "6.png"]
    photos(tmp_path / "images", *names)
    cancelled = {"was_cancelled": True, "result": task("", "dog")["annotations"][0]["result"]}
    regions = [{"from_name": "b", "type": "rectanglelabels", "value": {"x": 1, "rectanglelabels": ["cat"]}},
               {"from_name": "t", "type": "taxonomy", "value": {"taxonomy": [["animal", "cat"]]}},
               {"from_name": "w", "type": "textarea", "value": {"text": ["nice"]}}]  # fmt: skip
    tasks = [task("/data/upload/1/0123abcd-1.png", "cat", "dog"), task("/data/upload/1/89abcdef-2.png"),
             task("/data/local-files/?d=store%2Fdeep%2F3.png", "cat"),
             task("s3://bucket/x/4.png") | {"annotations": []},
             {"data": {"image": "5.png"}, "annotations": [{"result": regions}, cancelled]},
             {"data": {"image": "6.png"}, "predictions": task("", "dog")["annotations"]}]  # fmt: skip
    (tmp_path / "project.json").write_text(json.dumps(tasks))
    data = read(str(tmp_path))
    known = cells(data)
    assert known == {"0123abcd-1.png": {"cat": 1, "dog": 1}, "2.png": {}, "3.png": {"cat": 1}, "4.png": {},
                     "5.png": {"cat": 1, "animal/cat": 1}, "6.png": {}}  # fmt: skip
    said = [(problem.what, problem.row) for problem in data.problems]
    assert ("a result of type 'textarea' is not understood and not read", 5) in said
    assert "1 tasks hold predictions, which are not read; data.predictions=true reads them" in [
        what for what, _ in said
    ]
    whole = cells(read(str(tmp_path), complete=True))
    assert whole["2.png"] == {"animal/cat": 0, "cat": 0, "dog": 0}
    assert whole["4.png"] == whole["6.png"] == {}  # nobody has looked
    assert cells(read(str(tmp_path), predictions=True))["6.png"] == {"dog": 1}
    assert cells(read(str(tmp_path), control="t"))["5.png"] == {"animal/cat": 1}


def test_label_studio_keys_that_are_not_understood(tmp_path):
    photos(tmp_path, "1.png")
    file = tmp_path / "project.json"
    file.write_text(json.dumps([task("1.png", "cat"), task("1.png") | {"annotations": [{"result": [{"label": 3}]}]}]))
    assert "project.json, 2: key 'result' is not understood" in says(str(file))
    file.write_text(json.dumps([task("1.png", "cat") | {"data": {"a": "1.png", "b": "2.png"}}]))
    assert "project.json, 1: keys 'a' and 'b' may all name the image; data.image_key=a" in says(str(file))
    assert cells(read(str(file), image_key="a")) == {"1.png": {"cat": 1}}


@pytest.mark.parametrize("form", ["min.json", "export.csv"])
def test_label_studio_min_and_csv(tmp_path, form):
    photos(tmp_path, "1.png", "2.png", "3.png")
    if form == "min.json":
        rows = [{"image": f"/data/upload/7/0123abcd-{n}.png", "id": n, "animal": value, "annotator": 1,
                 "annotation_id": n, "lead_time": 3.5} for n, value in
                [(1, "cat"), (2, {"choices": ["cat", "big dog"]}), (3, "")]]  # fmt: skip
        (tmp_path / form).write_text(json.dumps(rows))
    else:
        head = "annotation_id,annotator,animal,id,image,lead_time\n"
        lines = ["1,a@b.org,cat,1,/data/upload/7/0123abcd-1.png,3.5",
                 '2,a@b.org,"{""choices"": [""cat"", ""big dog""]}",2,/data/upload/7/0123abcd-2.png,3.5',
                 "3,a@b.org,,3,/data/upload/7/0123abcd-3.png,3.5"]  # fmt: skip
        (tmp_path / form).write_text(head + "\n".join(lines) + "\n")
    assert find_format(str(tmp_path))[0] == "label_studio"
    assert cells(read(str(tmp_path))) == {"1.png": {"cat": 1}, "2.png": {"cat": 1, "big dog": 1}, "3.png": {}}


# ---------------------------------------------------------------------------------------- FiftyOne, Open Images, CelebA


def test_fiftyone_labels(tmp_path):
    photos(tmp_path / "data", "1.png", "2.png", "a/3.png", "4.png", "5.png")
    labels = {"1": 0, "2": [0, 1], "a/3": [{"label": "dog", "confidence": 0.5}], "4": None, "5.png": []}
    (tmp_path / "labels.json").write_text(json.dumps({"classes": ["cat", "dog"], "labels": labels}))
    known = {"1.png": {"cat": 1}, "2.png": {"cat": 1, "dog": 1}, "3.png": {"dog": 1}, "4.png": {}, "5.png": {}}
    assert cells(read(str(tmp_path))) == known
    whole = cells(read(str(tmp_path), complete=True))
    assert (whole["4.png"], whole["5.png"]) == ({}, {"cat": 0, "dog": 0})
    (tmp_path / "labels.json").write_text(json.dumps({"classes": ["cat"], "labels": {"1": 1, "2": {"name": "cat"}}}))
    found = says(str(tmp_path))
    assert "labels.json, 1: '1': label 1 is no class, of which there are 1" in found
    assert "labels.json, 2: '2': the keys 'name' are not understood; no 'label'" in found


def test_open_images(tmp_path):
    photos(tmp_path, "train/aa.png", "train/bb.png")
    (tmp_path / "class-descriptions.csv").write_text('/m/1,Cat\n/m/2,"Dog, big"\n')
    rows = ["aa,verification,/m/1,1", "aa,verification,/m/2,0", "bb,machine,/m/1,0.9", "bb,machine,/m/2,1",
            "aa,machine,/m/2,0.95"]  # fmt: skip
    file = tmp_path / "train-annotations-human-imagelabels.csv"
    file.write_text("ImageID,Source,LabelName,Confidence\n" + "\n".join(rows) + "\n")
    data = read(str(tmp_path))
    assert cells(data) == {"aa.png": {"Cat": 1, "Dog, big": 0}, "bb.png": {}}
    assert data.splits.tolist() == ["train", "train"]
    assert "3 labels made by a machine are left out" in data.problems[0].what
    assert cells(read(str(file), machine=0.95)) == {"aa.png": {"Cat": 1, "Dog, big": 0}, "bb.png": {"Dog, big": 1}}
    assert cells(read(str(file), classes='"Dog, big"')) == {"aa.png": {"Dog, big": 0}, "bb.png": {}}
    file.write_text("ImageID,LabelName,Confidence\naa,/m/1,1\naa,/m/1,x\ngone,/m/1,1\n")
    found = says(str(file))
    assert "imagelabels.csv, 3: Confidence 'x' is not understood" in found
    assert "1 of 2 images are missing, such as 'gone'" in found


def test_celeba(tmp_path):
    photos(tmp_path, "img_align_celeba/1.png", "img_align_celeba/2.png")
    (tmp_path / "attributes.txt").write_text("2\nBangs Smiling\n1.png  1 -1\n2.png -1  1\n")
    (tmp_path / "list_eval_partition.txt").write_text("1.png 0\n2.png 2\n")
    data = read(str(tmp_path))
    assert cells(data) == {"1.png": {"Bangs": 1, "Smiling": 0}, "2.png": {"Bangs": 0, "Smiling": 1}}
    assert data.splits.tolist() == ["train", "test"]
    (tmp_path / "attributes.txt").write_text("2\nBangs Smiling\n1.png  1 -1\n2.png -1\n")
    assert "attributes.txt, 4: '2.png': 1 cells for 2 classes" in says(str(tmp_path))


# ------------------------------------------------------------------------------------------------------ photo managers


def xmp(subjects=(), ways=(), tags=()) -> bytes:
    def bag(name: str, items) -> str:
        return f"<{name}><rdf:Bag>{''.join(f'<rdf:li>{item}</rdf:li>' for item in items)}</rdf:Bag></{name}>"

    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:lr="http://ns.adobe.com/lightroom/1.0/"'
        f' xmlns:digiKam="http://www.digikam.org/ns/1.0/">{bag("dc:subject", subjects)}'
        f"{bag('lr:hierarchicalSubject', ways)}{bag('digiKam:TagsList', tags)}"
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


def test_keywords_in_photographs_and_sidecars(tmp_path):
    picture = Image.new("RGB", (8, 6))
    exif = Image.Exif()
    exif[EXIF_KEYWORDS] = "sofa;cat\0".encode("utf-16-le")
    picture.save(tmp_path / "1.jpg", xmp=xmp(["cat", "größer"]), exif=exif)
    picture.save(tmp_path / "2.png")
    (tmp_path / "2.png.xmp").write_bytes(xmp(["Dog"], ways=["Animals|Dog"]))
    (tmp_path / "2.xmp").write_bytes(xmp(tags=["Places/Paris"]))
    picture.save(tmp_path / "3.jpg")
    (tmp_path / "3.xmp").write_bytes(b"<broken")
    picture.save(tmp_path / "4.jpg", xmp=xmp(["plures", "tree"], ways=["plures|tree", "Trees|oak"]))
    data = read(f"xmp:{tmp_path}")
    known = cells(data)
    assert known == {"1.jpg": {"cat": 1, "größer": 1, "sofa": 1}, "2.png": {"Dog": 1, "Paris": 1}, "3.jpg": {},
                     "4.jpg": {"oak": 1}}  # fmt: skip
    said = [problem.what for problem in data.problems]
    assert any(what.startswith("3.xmp cannot be read as XMP") for what in said)
    assert "1 keywords below 'plures/' that plures wrote are not read; data.branch=plures reads them alone" in said
    assert cells(read(f"xmp:{tmp_path}", nested="path"))["2.png"] == {"Animals/Dog": 1, "Places/Paris": 1}
    assert cells(read(f"xmp:{tmp_path}", branch="plures"))["4.jpg"] == {"tree": 1}
    assert find_format(str(tmp_path))[0] == "folder"


def test_iptc_keywords(tmp_path):
    from PIL import ImageFile  # noqa: F401

    words = b"".join(b"\x1c\x02\x19" + len(word).to_bytes(2, "big") + word for word in (b"cat", "Öl".encode("cp1252")))
    block = b"8BIM\x04\x04\x00\x00" + len(words).to_bytes(4, "big") + words + b"\0" * (len(words) % 2)
    segment = b"Photoshop 3.0\x00" + block
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "JPEG")
    made = buffer.getvalue()
    (tmp_path / "1.jpg").write_bytes(
        made[:2] + b"\xff\xed" + (len(segment) + 2).to_bytes(2, "big") + segment + made[2:]
    )
    assert cells(read(f"xmp:{tmp_path}")) == {"1.jpg": {"cat": 1, "Öl": 1}}


# --------------------------------------------------------------------------------------------------------- real exports


@needs_shared
@pytest.mark.parametrize(
    ("case", "format", "images", "present"),
    [
        ("02-hf-metadata-jsonl", "huggingface", 40, 48),
        ("03-cvat-tags/xml", "cvat", 20, 18),
        ("03-cvat-tags/imagenet", "folder", 20, 18),
        ("03-cvat-tags/datumaro", "datumaro", 20, 23),
        ("04-label-studio/export.json", "label_studio", 20, 25),
        ("04-label-studio/export-min.json", "label_studio", 20, 25),
        ("04-label-studio/export.csv", "label_studio", 20, 25),
        ("09-celeba/list_attr_celeba.txt", "celeba", 24, 29),
        ("12-fiftyone-labels-json", "fiftyone", 20, 25),
    ],
)
def test_real_cases(case, format, images, present):
    path = str(SHARED / "cases" / case)
    data = read(path)
    assert find_format(path)[0] == format
    assert (len(data), int(data.labels.present.sum())) == (images, present)
    assert data.labels.absent.any() == (format == "celeba")
