"""Merging sources: scopes, names, parents, conflicts; the order of the sources changes nothing."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from plures.data.dataset import Dataset
from plures.data.merge import Scope, Source, merge
from plures.data.merge_files import scopes_of_flags
from plures.data.read import read
from plures.errors import PluresError
from plures.labels import Labels


def source(name, rows, scope=None, rename=None, splits=None):
    """rows: {image: "dog cat -cow"}; a minus says absent."""
    classes = tuple(sorted({word.lstrip("-") for tags in rows.values() for word in tags.split()}))
    values = np.full((len(rows), len(classes)), -1, np.int8)
    for n, tags in enumerate(rows.values()):
        for word in tags.split():
            values[n, classes.index(word.lstrip("-"))] = 0 if word.startswith("-") else 1
    splits = None if splits is None else np.array(splits)
    data = Dataset([f"/photos/{image}" for image in rows], Labels(values), classes, splits, name=name)
    return Source(name, data, scope or Scope(), rename or {})


def cells(merged):
    """{image: {class: code}} without what is unknown."""
    d = merged.dataset
    return {
        str(image).removeprefix("/photos/"): {c: int(v) for c, v in zip(d.classes, row, strict=True) if v >= 0}
        for image, row in zip(d.images, d.labels.values, strict=True)
    }


# ---------------------------------------------------------------------------------------------------- the four scopes


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        (Scope("complete"), {"dog": 1, "cat": 0, "cow": 0}),
        (Scope("positive"), {"dog": 1}),
        (Scope("none"), {}),
        (Scope("as_given"), {"dog": 1, "cat": 0}),
        (Scope("positive", {"cat": "complete"}), {"dog": 1, "cat": 0}),
        (Scope("complete", {"cow": "none"}), {"dog": 1, "cat": 0}),
    ],
)
def test_scopes(scope, expected):
    found = cells(merge([source("a", {"1.jpg": "dog -cat", "2.jpg": "cow"}, scope)]))
    assert found["1.jpg"] == expected


def test_a_complete_scope_reaches_only_the_classes_it_names():
    a = source("a", {"1.jpg": "dog"}, Scope("complete"))
    b = source("b", {"2.jpg": "zebra"}, Scope("positive"))
    assert cells(merge([a, b])) == {"1.jpg": {"dog": 1}, "2.jpg": {"zebra": 1}}
    a = source("a", {"1.jpg": "dog"}, Scope("complete", {"zebra": "complete"}))
    assert cells(merge([a, b]))["1.jpg"] == {"dog": 1, "zebra": 0}


def test_sources_add_up():
    a = source("a", {"1.jpg": "dog", "2.jpg": "cat"}, Scope("complete"))
    b = source("b", {"1.jpg": "sofa", "3.jpg": "sofa"}, Scope("positive"))
    merged = merge([a, b])
    assert cells(merged) == {
        "1.jpg": {"dog": 1, "cat": 0, "sofa": 1},
        "2.jpg": {"dog": 0, "cat": 1},
        "3.jpg": {"sofa": 1},
    }
    assert merged.holds.tolist() == [3, 1, 2]
    assert not merged.conflicts


# ------------------------------------------------------------------------------------------------- names and parents


def test_synonyms_and_renames():
    a = source("a", {"1.jpg": "canine", "2.jpg": "crane"}, Scope("complete"), {"crane": "bird"})
    b = source("b", {"3.jpg": "dog crane"})
    found = cells(merge([a, b], {"dog": ["canine", "hound"]}))
    assert found == {"1.jpg": {"dog": 1, "bird": 0}, "2.jpg": {"dog": 0, "bird": 1}, "3.jpg": {"dog": 1, "crane": 1}}


def test_two_names_of_one_class_in_a_source_are_completed_together():
    a = source("a", {"1.jpg": "puppy", "2.jpg": "hound", "3.jpg": "cat"}, Scope("complete"))
    found = cells(merge([a], {"dog": ["puppy", "hound"]}))
    assert found == {"1.jpg": {"dog": 1, "cat": 0}, "2.jpg": {"dog": 1, "cat": 0}, "3.jpg": {"dog": 0, "cat": 1}}


def test_parents_follow_children_and_children_parents():
    parents = {"terrier": ["dog"], "dog": ["animal"], "cat": ["animal"]}
    a = source("a", {"1.jpg": "terrier", "2.jpg": "-animal", "3.jpg": "-dog"})
    b = source("b", {"4.jpg": "cat"})
    assert cells(merge([a, b], parents=parents)) == {
        "1.jpg": {"terrier": 1, "dog": 1, "animal": 1},
        "2.jpg": {"terrier": 0, "dog": 0, "cat": 0, "animal": 0},
        "3.jpg": {"terrier": 0, "dog": 0},
        "4.jpg": {"cat": 1, "animal": 1},
    }


def test_a_complete_source_that_tags_the_child_alone_does_not_deny_the_parent():
    a = source("a", {"1.jpg": "dog", "2.jpg": "animal"}, Scope("complete"))
    merged = merge([a], parents={"dog": ["animal"]})
    assert cells(merged) == {"1.jpg": {"dog": 1, "animal": 1}, "2.jpg": {"dog": 0, "animal": 1}}
    assert not merged.conflicts


# ---------------------------------------------------------------------------------------------------------- conflicts


def test_a_disputed_cell_is_unknown_and_listed():
    a, b = source("a", {"1.jpg": "dog", "2.jpg": "dog"}), source("b", {"1.jpg": "-dog cat"})
    merged = merge([a, b])
    assert cells(merged) == {"1.jpg": {"cat": 1}, "2.jpg": {"dog": 1}}
    (conflict,) = merged.conflicts
    assert (conflict.image, conflict.name, conflict.present, conflict.absent) == (
        "/photos/1.jpg",
        "dog",
        ("a",),
        ("b",),
    )


def test_nothing_follows_from_a_disputed_cell():
    parents = {"dog": ["animal"], "animal": ["thing"], "cat": ["animal"]}
    a, b = source("a", {"1.jpg": "dog"}), source("b", {"1.jpg": "-animal"})
    merged = merge([a, b], parents=parents)
    assert cells(merged) == {"1.jpg": {}}  # neither thing from dog, nor no cat from no animal
    assert [(c.name, c.present, c.absent) for c in merged.conflicts] == [
        ("animal", ("a (dog)",), ("b",)),
        ("dog", ("a",), ("b (animal)",)),
    ]


def test_splits_that_clash_leave_the_image_out_of_both():
    a = source("a", {"1.jpg": "dog", "2.jpg": "dog"}, splits=["train", "test"])
    b = source("b", {"2.jpg": "dog", "3.jpg": "dog"}, splits=["train", ""])
    merged = merge([a, b])
    assert merged.dataset.splits.tolist() == ["train", "", "train"]
    assert merged.conflicts[0].name is None
    assert merged.conflicts[0].present == ("a: test", "b: train")
    assert "1 images that no source puts into a split are in 'train'" in merged.notes


# ------------------------------------------------------------------------------------------------------------ the laws

NAMES = ("terrier", "dog", "animal", "cat", "hound")
PARENTS = {"terrier": ["dog"], "dog": ["animal"], "cat": ["animal"]}
tags = st.lists(st.sampled_from([s + n for n in NAMES for s in ("", "-")]), max_size=4, unique=True).map(
    lambda words: " ".join(w for w in words if w.startswith("-") or f"-{w}" not in words)
)
kinds = st.sampled_from(["complete", "positive", "none", "as_given"])


@st.composite
def some_sources(draw):
    count = draw(st.integers(1, 4))
    made = []
    for name in "abcd"[:count]:
        rows = draw(st.dictionaries(st.sampled_from(["1.jpg", "2.jpg", "3.jpg"]), tags, min_size=1))
        scope = Scope(draw(kinds), draw(st.dictionaries(st.sampled_from(["terrier"]), kinds)))
        made.append(source(name, {**rows, "0.jpg": "terrier"}, scope))
    return made


@settings(max_examples=150, deadline=None)
@given(some_sources(), st.randoms())
def test_the_order_of_the_sources_changes_nothing(sources, random):
    other = random.sample(sources, len(sources))
    one, two = (merge(s, {"dog": ["hound"]}, PARENTS) for s in (sources, other))
    assert one.dataset.classes == two.dataset.classes
    assert cells(one) == cells(two)
    assert set(one.conflicts) == set(two.conflicts)


@settings(max_examples=150, deadline=None)
@given(some_sources())
def test_merging_again_changes_nothing(sources):
    once = merge(sources, {"dog": ["hound"]}, PARENTS)
    again = merge([Source("merged", once.dataset)], parents=PARENTS)
    assert cells(again) == cells(once)
    assert not again.conflicts
    twice = [*sources, *(Source(f"{s.name} again", s.dataset, s.scope) for s in sources)]
    assert cells(merge(twice, {"dog": ["hound"]}, PARENTS)) == cells(once)


@settings(max_examples=150, deadline=None)
@given(some_sources())
def test_a_result_obeys_the_parents_and_every_known_cell_was_said_or_follows(sources):
    merged = merge(sources, {"dog": ["hound"]}, PARENTS)
    listed = {(c.image.removeprefix("/photos/"), c.name) for c in merged.conflicts}
    for image, known in cells(merged).items():
        for child, parent in (("terrier", "dog"), ("dog", "animal"), ("cat", "animal"), ("terrier", "animal")):
            assert not (known.get(child) == 1 and known.get(parent) != 1)
            if parent in known and child in merged.dataset.classes:
                assert not (known[parent] == 0 and known.get(child) != 0)
        assert not {(image, name) for name in known} & listed


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"synonyms": {"dog": ["hound"], "cat": ["hound"]}}, "'hound' would mean both 'dog' and 'cat'"),
        ({"synonyms": {"dog": ["hound"], "hound": ["beagle"]}}, "'hound' is kept and is also another name of 'dog'"),
        ({"parents": {"dog": ["animal"], "animal": ["dog"]}}, "a cycle, animal -> dog -> animal|dog -> animal -> dog"),
        ({"match": "size"}, "expected path or name"),
    ],
)
def test_names_that_contradict_each_other(arguments, words):
    with pytest.raises(PluresError, match=words):
        merge([source("a", {"1.jpg": "dog"})], **arguments)


def test_mistakes_of_sources():
    a = source("a", {"1.jpg": "dog"})
    with pytest.raises(PluresError, match="2 sources are called 'a'"):
        merge([a, a])
    with pytest.raises(PluresError, match="scope of 'dgo', which no source names; did you mean 'dog'"):
        merge([source("a", {"1.jpg": "dog"}, Scope("positive", {"dgo": "complete"}))])
    with pytest.raises(PluresError, match="rename of 'dgo', which it does not name; did you mean 'dog'"):
        merge([source("a", {"1.jpg": "dog"}, rename={"dgo": "cat"})])
    with pytest.raises(PluresError, match="no source 'c'"):
        scopes_of_flags(["c:complete"], ["a", "b"])
    with pytest.raises(PluresError, match="expected SOURCE:KIND"):
        scopes_of_flags(["a:sometimes"], ["a"])
    with pytest.raises(PluresError, match="another scope already"):
        scopes_of_flags(["a:complete:dog", "a:none:dog"], ["a"])
    assert scopes_of_flags(["b:positive", "b:complete:dog,cat"], ["a", "b"]) == {
        "a": Scope("as_given", {}),
        "b": Scope("positive", {"dog": "complete", "cat": "complete"}),
    }


def test_images_can_be_matched_by_name():
    a = Source("a", Dataset(["/one/1.jpg"], Labels(np.array([[1]], np.int8)), ("dog",)))
    b = Source("b", Dataset(["/two/1.jpg"], Labels(np.array([[1]], np.int8)), ("cat",)))
    assert len(merge([a, b]).dataset) == 2
    merged = merge([a, b], match="name")
    assert list(merged.dataset.images) == ["/one/1.jpg"]
    assert merged.dataset.labels.values.tolist() == [[1, 1]]


# -------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def tables(tmp_path):
    for i in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.jpg")
    pd.DataFrame({"image": ["0.jpg", "1.jpg", "2.jpg"], "tags": ["dog;cat", "cat", "dog"]}).to_csv(
        tmp_path / "a.csv", index=False
    )
    rows = {"image": ["2.jpg", "3.jpg"], "tags": ["sofa;canine", "sofa"], "absent": ["", "cat"]}
    pd.DataFrame(rows).to_csv(tmp_path / "b.csv", index=False)
    (tmp_path / "synonyms.yaml").write_text("dog: [canine]\n")
    (tmp_path / "parents.yaml").write_text("dog: animal\ncat: animal\nlion: animal\n")
    return tmp_path


def test_the_command_writes_a_table_and_its_provenance(plures, tables):
    names = ("--synonyms", tables / "synonyms.yaml", "--parents", tables / "parents.yaml")
    scopes = ("--scope", "a:complete", "--scope", "b:positive:dog,sofa")
    out = tables / "merged.csv"
    code, text, err = plures("merge", tables / "a.csv", tables / "b.csv", *scopes, *names, "--out", out)
    assert code == 0, err
    assert "merged.csv: 4 images, 4 classes" in text
    assert "no source names lion" in text
    table = pd.read_csv(out, keep_default_na=False)
    assert table.source.tolist() == ["a", "a", "a;b", "b"]
    assert table.tags.tolist() == ["animal;cat;dog", "animal;cat", "animal;dog;sofa", "sofa"]
    assert table.absent.tolist() == ["", "dog", "cat", "cat"]
    again = read(str(out))
    assert again.classes == ("animal", "cat", "dog", "sofa")
    said = json.loads((tables / "merged.sources.json").read_text())
    assert [(s["name"], s["cells_said_present"], s["cells_said_absent"]) for s in said] == [("a", 4, 2), ("b", 3, 1)]
    by_cell = pq.read_table(tables / "merged.cells.parquet").to_pandas()
    who = {(i.rsplit("/", 1)[-1], c): s for i, c, s in by_cell[["image", "class", "said_by"]].itertuples(index=False)}
    assert who["2.jpg", "dog"] == "a;b"
    assert who["0.jpg", "animal"] == ""
    assert len(who) == int((~again.labels.unknown).sum())
    assert not (tables / "merged.conflicts.csv").exists()


def test_a_spec_says_the_same_and_conflicts_are_listed(plures, tables):
    (tables / "spec.yaml").write_text(
        "sources:\n  a: {data: a.csv, scope: complete}\n  b:\n    data: b.csv\n"
        "    scope: {positive: [dog, sofa], complete: [cat]}\n    rename: {canine: cat}\n"
        "parents: {dog: animal, cat: animal}\n"
    )
    code, text, err = plures("merge", "--spec", tables / "spec.yaml", "--out", tables / "m.csv")
    assert code == 0, err
    assert "a: 3 images, complete" in text
    assert "1 conflicts, left unknown and listed in" in err
    assert "'cat' present in b, absent in a" in err
    listed = pd.read_csv(tables / "m.conflicts.csv")
    assert listed["class"].tolist() == ["cat"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "say what to merge"),
        (("a.csv", "--spec", "s.yaml"), "say what to merge"),
        (("a.csv", "--scope", "b:complete"), "no source 'b'"),
        (("a.csv", "b.csv", "--synonyms", "nothing.yaml"), "nothing.yaml: cannot be read"),
        (("a.csv", "a.csv"), "2 sources are called 'a'"),
        (("a.csv", "--match", "size"), "expected path or name"),
    ],
)
def test_mistakes_are_one_line(plures, tables, monkeypatch, arguments, words):
    monkeypatch.chdir(tables)
    code, _, err = plures("merge", *arguments, "--out", "m.csv")
    assert code == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert not (tables / "m.csv").exists()


def test_an_exclusive_group_says_what_is_absent_and_who_disagrees():
    a = source("a", {"1.jpg": "terrier", "2.jpg": "cat"})
    b = source("b", {"1.jpg": "sofa", "2.jpg": "terrier", "3.jpg": "cat"})
    merged = merge([a, b], {"cat": ["kitty"]}, {"terrier": ["dog"]}, exclusive=[["dog", "kitty", "unheard"]])
    assert cells(merged) == {
        "1.jpg": {"terrier": 1, "dog": 1, "cat": 0, "sofa": 1},
        "2.jpg": {},
        "3.jpg": {"cat": 1, "dog": 0, "terrier": 0},
    }
    said = {c.name: (c.present, c.absent) for c in merged.conflicts}
    assert said == {
        "cat": (("a",), ("b (terrier present)",)),
        "dog": (("b (terrier)",), ("a (cat present)",)),
        "terrier": (("b",), ("a (cat present)",)),
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "classes.yaml",
            "classes: {dog: {parents: animal}, animal: {}, cat: {parents: animal}}\nexclusive: [[cat, dog]]",
        ),
        ("edges.csv", "child,parent\ndog,animal\ncat,animal\n"),
        ("parents.yaml", "dog: animal\ncat: [animal]\n"),
    ],
)
def test_parents_come_from_any_file_of_classes(plures, tmp_path, name, text):
    Image.new("RGB", (9, 9)).save(tmp_path / "1.png")
    (tmp_path / "a.csv").write_text("image,tags\n1.png,dog\n")
    (tmp_path / name).write_text(text)
    (tmp_path / "spec.yaml").write_text(f"sources: {{a: a.csv}}\nparents: {name}\n")
    for how in ((tmp_path / "a.csv", "--parents", tmp_path / name), ("--spec", tmp_path / "spec.yaml")):
        assert plures("merge", *how, "--out", tmp_path / "out.csv", "--force")[0] == 0
        found = read(str(tmp_path / "out.csv"))
        assert dict(zip(found.classes, found.labels.values[0].tolist(), strict=True)) == {"animal": 1, "dog": 1}
