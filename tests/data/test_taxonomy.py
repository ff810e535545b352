"""Hierarchies and exclusive groups: what follows of labels and calls, and the files that say them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plures.data.dataset import Dataset
from plures.data.taxonomy import Taxonomy, read_relations, read_taxonomy
from plures.errors import PluresError
from plures.labels import Labels
from plures.runs.data import with_taxonomy

CLASSES = ("animal", "dog", "poodle", "cat", "sofa", "pet")
PARENTS = {"dog": ["animal", "pet"], "poodle": ["dog"], "cat": ["animal"]}
ZOO = Taxonomy(CLASSES, PARENTS, [["cat", "dog"]])


def closed(taxonomy, **known):
    row = np.array([[known.get(name, -1) for name in taxonomy.classes]], np.int8)
    labels, wrong = taxonomy.close(Labels(row))
    found = {name: int(v) for name, v in zip(taxonomy.classes, labels.values[0], strict=True) if v >= 0}
    return found, bool(wrong[0])


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"poodle": 1}, {"poodle": 1, "dog": 1, "animal": 1, "pet": 1, "cat": 0}),
        ({"animal": 0}, {"animal": 0, "dog": 0, "poodle": 0, "cat": 0}),
        ({"cat": 1}, {"cat": 1, "animal": 1, "dog": 0, "poodle": 0}),
        ({"dog": 0}, {"dog": 0, "poodle": 0}),
        ({"animal": 1, "poodle": 0}, {"animal": 1, "poodle": 0}),
        ({"sofa": 1}, {"sofa": 1}),
    ],
)
def test_what_follows(known, expected):
    assert closed(ZOO, **known) == (expected, False)


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"poodle": 1, "animal": 0, "pet": 1}, "'poodle' present, 'animal' absent"),
        ({"poodle": 1, "cat": 1}, "'poodle' and 'cat' present"),
        ({"dog": 1, "dog_": 0, "pet": 0, "sofa": 1}, "'dog' present, 'pet' absent"),
    ],
)
def test_a_contradiction_stays_as_it_was_written(known, words):
    row = np.array([known.get(name, -1) for name in CLASSES], np.int8)
    labels, wrong = ZOO.close(Labels(row[None]))
    assert wrong.tolist() == [True]
    assert (labels.values[0][row >= 0] == row[row >= 0]).all()
    assert ZOO.conflict(labels.values[0]) == words
    assert labels.values[0][CLASSES.index("dog")] != 0  # nothing follows from what is disputed


def worlds(taxonomy):
    """Every assignment of the classes that obeys the taxonomy, bool [W, K]."""
    every = np.array(list(itertools.product([False, True], repeat=len(taxonomy.classes))))
    column = {name: k for k, name in enumerate(taxonomy.classes)}
    fine = np.ones(len(every), bool)
    for child, up in taxonomy.parents.items():
        for parent in up:
            fine &= ~every[:, column[child]] | every[:, column[parent]]
    for group in taxonomy.exclusive:
        fine &= every[:, [column[name] for name in group]].sum(1) <= 1
    return every[fine]


@st.composite
def taxonomies(draw):
    names = tuple("abcdef")
    parents = {name: draw(st.lists(st.sampled_from(names[:k]), unique=True, max_size=2)) for k, name in
               enumerate(names) if k}  # fmt: skip
    pair = draw(st.lists(st.sampled_from(names), unique=True, min_size=2, max_size=3))
    try:
        return Taxonomy(names, {c: up for c, up in parents.items() if up}, [pair] if draw(st.booleans()) else [])
    except PluresError:  # the pair stands one above the other
        return Taxonomy(names, {c: up for c, up in parents.items() if up})


@settings(max_examples=60, deadline=None)
@given(taxonomies(), st.lists(st.sampled_from([-1, -1, 0, 1]), min_size=6, max_size=6))
def test_closure_is_what_holds_in_every_world(taxonomy, codes):
    row, possible = np.array(codes, np.int8), worlds(taxonomy)
    those = possible[((possible == (row == 1)) | (row == -1)).all(1)]
    labels, wrong = taxonomy.close(Labels(row[None]))
    assert wrong[0] == (not len(those))
    if len(those):
        certain = np.where(those.all(0), 1, np.where(~those.any(0), 0, -1))
        assert labels.values[0].tolist() == certain.tolist()
        again, _ = taxonomy.close(labels)
        assert (again.values == labels.values).all()
    else:
        assert taxonomy.conflict(labels.values[0])


@settings(max_examples=60, deadline=None)
@given(taxonomies(), st.integers(0, 1000))
def test_calls_obey_the_taxonomy(taxonomy, seed):
    random = np.random.default_rng(seed)
    scores = taxonomy.highest(random.normal(size=(20, 6)))
    called = random.random((20, 6)) < 0.4
    found = taxonomy.coherent(called, scores)
    possible = {tuple(world) for world in worlds(taxonomy)}
    assert all(tuple(row) in possible for row in found)
    assert (found <= called).all()
    obeys = np.array([tuple(row) in possible for row in called])
    assert (found[obeys] == called[obeys]).all()


def test_of_an_exclusive_group_the_highest_is_called():
    scores = ZOO.highest(np.array([[-3.0, -2.0, 2.0, 1.0, 5.0, -4.0], [-3.0, -2.0, 0.5, 1.0, 5.0, -4.0]]))
    assert scores[0].tolist() == [2.0, 2.0, 2.0, 1.0, 5.0, 2.0]
    called = ZOO.coherent(scores >= 0, scores)
    names = [{CLASSES[k] for k in np.flatnonzero(row)} for row in called]
    assert names == [{"animal", "dog", "poodle", "sofa", "pet"}, {"animal", "cat", "sofa", "pet"}]


def test_levels_and_plain_values():
    assert ZOO.levels.tolist() == [0, 1, 2, 1, 0, 0]
    assert ZOO.ancestors[2].tolist() == [True, True, False, False, False, True]
    again = Taxonomy.from_dict(ZOO.to_dict())
    assert (again.classes, again.to_dict()) == (ZOO.classes, ZOO.to_dict())
    assert (again.rivals == ZOO.rivals).all()
    assert not Taxonomy(("a",))


# --------------------------------------------------------------------------------------------------------------- files

YAML = """classes:
  animal: {}
  dog: {parents: animal, synonyms: [puppy]}
  cat: {parents: [animal]}
exclusive: [[cat, dog]]
"""


def test_the_spellings_of_a_file(tmp_path):
    files = {
        "classes.yaml": YAML,
        "parents.yaml": "dog: animal\ncat: [animal]\n",
        "edges.csv": "child,parent\ndog,animal\ncat,animal\n",
        "bare.csv": "dog,animal\n\ncat, animal\nanimal,\n",
        "edges.tsv": "Hyponym\tHypernym\ndog\tanimal\ncat\tanimal\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        found = read_taxonomy(tmp_path / name, ("cat", "sofa", "dog"))
        assert found.classes == ("cat", "sofa", "dog", "animal"), name
        assert {child: list(up) for child, up in found.parents.items() if up} == {"dog": ["animal"], "cat": ["animal"]}
        assert bool(found.exclusive) == (name == "classes.yaml")


def test_of_a_list_of_edges_only_what_is_above_the_data_counts(tmp_path):
    file = tmp_path / "wordnet.csv"
    file.write_text("dog,canine\ncanine,animal\nwolf,canine\noak,tree\n")
    assert read_taxonomy(file, ("dog",)).classes == ("dog", "canine", "animal")
    assert set(read_taxonomy(file, ()).classes) == {"dog", "canine", "animal", "wolf", "oak", "tree"}
    with pytest.raises(PluresError, match="names none of the classes of the data"):
        read_taxonomy(file, ("sofa",))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "classes: {dog: {parents: cat}, cat: {parents: pet}, pet: {parents: dog}}", "a cycle, "),
        ("a.csv", "dog,cat\ncat,pet\npet,dog\n", "a cycle, "),
        ("a.yaml", "classes: {dog: {parents: dog}}", "'dog' is its own parent"),
        (
            "a.yaml",
            "classes: {dog: {parents: animl}, animal: {}}",
            "parent 'animl' of 'dog' is no class; did you mean 'an",
        ),
        ("a.csv", "dog,animl\ncat,animal\nanimal,\n", "parent 'animl' of 'dog' is no class and .* mean 'animal'"),
        ("a.yaml", "classes: {dog: {}}\nexclusive: [[dog, catt]]", "exclusive: 'catt' is no class; did you mean 'cat'"),
        (
            "a.yaml",
            "classes: {dog: {parents: animal}, animal: {}}\nexclusive: [[dog, animal]]",
            "exclusive: 'dog' and 'animal' cannot exclude each other, as one is above the other",
        ),
        (
            "a.yaml",
            "classes: {mix: {parents: [dog, cat]}}\nexclusive: [[dog, cat]]",
            "exclusive: 'dog' and 'cat' .* 'mix' is below both",
        ),
        ("a.yaml", "classes: {dog: {}}\nexclusive: [[dog, dog]]", "a class cannot exclude itself"),
        ("a.yaml", "classes: {dog: {}}\nexclusive: [dog, cat]", "expected a list of groups"),
        ("a.yaml", "classes: {dog: {}}\nexclusives: [[dog, cat]]", "expected one mapping"),
        ("a.csv", "dog,animal,living\n", "row 1: expected two columns, child and parent, found 3 columns"),
        ("a.csv", "child,parent\n", "no line of child and parent"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path, name, text, message):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(PluresError, match=message) as raised:
        read_taxonomy(file, ("dog", "cat"))
    assert "\n" not in str(raised.value)
    assert str(file) in str(raised.value)


def test_a_cycle_is_shown_whole():
    with pytest.raises(PluresError, match=r"a cycle, cat -> pet -> dog -> cat|a cycle, dog -> cat -> pet -> dog"):
        Taxonomy(("dog", "cat", "pet"), {"dog": ["cat"], "cat": ["pet"], "pet": ["dog"]})


def test_a_long_chain():
    names = tuple(f"c{k}" for k in range(2000))
    chain = Taxonomy(names, {one: [up] for up, one in itertools.pairwise(names)})
    assert chain.levels[-1] == 1999


def test_a_dataset_gets_the_classes_and_a_line_on_contradictions(tmp_path):
    file = tmp_path / "classes.yaml"
    file.write_text(YAML)
    values = np.array([[1, -1], [1, 1], [-1, -1]] + [[1, 1]] * 4, np.int8)
    data = Dataset([f"/p/{n}.jpg" for n in range(7)], Labels(values), ("dog", "cat"))
    found = with_taxonomy(data, read_taxonomy(file, data.classes), str(file))
    assert found.classes == ("dog", "cat", "animal")
    assert found.labels.values[:3].tolist() == [[1, 0, 1], [1, 1, -1], [-1, -1, -1]]
    added, notice = found.problems
    assert added.what == "classes.yaml adds, to the classes of the data: animal"
    assert notice.severity == "notice"
    assert notice.what.startswith(
        "5 images contradict the hierarchy and stay as they are (1.jpg: 'dog' and 'cat' present; 3.jpg:"
    )
    assert notice.what.endswith("; ...)")
    assert found.take([0]).taxonomy is found.taxonomy
    assert read_relations(file).names == ("animal", "dog", "cat")
