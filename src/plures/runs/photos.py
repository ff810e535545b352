"""Which photographs a run has, by content, and in which split each stands: `photos.parquet` in the run folder.

The file is written when a run begins and never changed. Every later reading of the run's data takes each photograph's
split from it, so that a table that was edited meanwhile is not divided anew, and no photograph that the run was trained
on is judged as validation or test, whatever table it is met in.

A photograph is known by 128 bits of BLAKE2b of its file (or of its stretch of a shard, or of its array in memory), so
renamed and moved files are recognised. Photographs at an address (s3://...) are not fetched for it: their name counts.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from plures.config import Experiment
from plures.data.dataset import Dataset
from plures.data.near_copies import NEAR_EXACT, joined_groups, near_groups, small_pictures
from plures.data.photos import is_address, opened
from plures.errors import PluresError, Problem
from plures.files import writing
from plures.labels import ABSENT, PRESENT
from plures.system import in_threads

PHOTOS = "photos.parquet"
THREADS, AT_ONCE = 8, 64  # photographs a task
BYTES = 16  # of a content
STARTED_FROM = "start"  # the split of photographs that the run's starting weights were trained on, beside its own
STRENGTH = ("train", "val", "test")  # of splits: a photograph with copies in several of them counts in the first
ROWS = 65_536  # of the labels at once
Contents = NDArray[np.bytes_]

log = logging.getLogger("plures")  # the command line prints what is said here; in Python, warnings go to stderr


# ------------------------------------------------------------------------------------------------------ what is equal


def with_contents(dataset: Dataset) -> Dataset:
    """The dataset with the content of every photograph, which takes one reading of each file."""
    return replace(dataset, contents=contents(dataset))


def contents(dataset: Dataset) -> Contents:
    """The content [N] of every photograph."""
    if dataset.contents is not None:
        return dataset.contents
    return contents_of(dataset.images if dataset.features is None else dataset.features)


def contents_of(images: Any) -> Contents:
    """Content [N] of each image, 16 bytes; of what cannot be read, and of what an address would have to send, one that
    follows from its name."""
    found = np.empty(len(images), f"S{BYTES}")

    def fill(start: int) -> None:
        for row in range(start, min(start + AT_ONCE, len(images))):
            found[row] = _content(images[row])

    in_cells = len(images) > 0 and isinstance(images[0], str) and ".parquet#" in images[0]  # read a group at a time
    in_threads(fill, range(0, len(images), AT_ONCE), 1 if in_cells else THREADS)
    return found


def _content(image: Any) -> bytes:
    if isinstance(image, np.ndarray):
        return _digest(f"{image.dtype}{image.shape}".encode(), np.ascontiguousarray(image).data)
    path = str(image)
    if is_address(path):
        return _digest(b"address:", path.encode())
    try:
        source = opened(path)
        return _digest(source.getbuffer() if isinstance(source, BytesIO) else Path(source).read_bytes())
    except (OSError, ValueError, PluresError):  # whoever needs its pixels will say what is wrong
        return _digest(b"path:", os.path.abspath(path).encode(errors="surrogateescape"))


def _digest(*pieces: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=BYTES)
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def copies(among: Contents) -> NDArray[np.int64] | None:
    """For each photograph the row [N] of the first one of the same content; None if all differ."""
    _, first, inverse = np.unique(among, return_index=True, return_inverse=True)
    return None if len(first) == len(among) else np.asarray(first[inverse.reshape(-1)])


def copies_across(dataset: Dataset) -> list[Problem]:
    """A notice for each photograph that has copies in several splits, naming both."""
    first = copies(contents(dataset))
    if first is None or dataset.splits is None:
        return []
    rows = np.flatnonzero(
        (dataset.splits != dataset.splits[first]) & (dataset.splits != "") & (dataset.splits[first] != "")
    )
    notices = []
    for row, other in zip(rows.tolist(), first[rows].tolist(), strict=True):
        file = f"row {row}" if dataset.in_memory else str(dataset.images[row])
        what = f"'{dataset.splits[row]}' and a copy of {dataset.called(other)} in '{dataset.splits[other]}'"
        notices.append(Problem(file, None, what, "each photograph in one split", "notice"))
    return notices


def on_one_side(
    dataset: Dataset, splits: NDArray[np.str_], drawn: NDArray[np.bool_], *, move: bool = True, near: bool = False
) -> NDArray[np.str_]:
    """The splits [N] with copies of a photograph on one side. drawn [N]: where we chose the split ourselves.

    Copies, and images of one group, that were drawn go where the first of them went, if we may `move` them; `near`:
    with what is a copy but for its size or encoding. Where the data put copies into several splits, the ones in the
    weaker split (test, then val) get none, so that nothing is judged on a photograph that is trained on.
    """
    first = copies(contents(dataset))
    if move:
        together = _near_too(dataset, drawn, first) if near and not dataset.in_memory else first
        together = _with_groups(dataset, together)
        if together is not None:
            splits = splits.copy()
            leader = np.full(len(splits), len(splits))  # the first drawn copy of each group
            np.minimum.at(leader, together[drawn], np.flatnonzero(drawn))
            splits[drawn] = splits[leader[together[drawn]]]
    if first is None:
        return splits
    splits = splits.copy()
    rank = strength(splits)
    best = np.full(len(splits), len(STRENGTH) + 1)
    np.minimum.at(best, first, rank)
    weaker = ~drawn & (rank > best[first]) & (splits != "")
    if weaker.any():
        row = int(np.flatnonzero(weaker)[0])
        log.warning(
            f"{dataset.name}: {_photographs(int(weaker.sum()))} copies of one in another split"
            f" ({dataset.called(row)} in '{splits[row]}'); left out there, as train counts before val and val before"
            " test; `plures check` names them all"
        )
        splits[weaker] = ""
    return splits


def _near_too(dataset: Dataset, among: NDArray[np.bool_], first: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """The groups `first` [N] of equal photographs, and with them near-exact copies `among` these rows."""
    rows = np.flatnonzero(among)
    if len(rows) > COMPARED:  # every pair is looked at: half a minute for so many, an hour for a million
        return first
    key = _digest(np.ascontiguousarray(contents(dataset)[rows]).data)
    if key not in _near:
        _near.clear()
        groups = near_groups(small_pictures(dataset.take(rows)), NEAR_EXACT)
        many = np.bincount(groups, minlength=len(groups))[groups] > COPIES
        _near[key] = np.where(many, np.arange(len(groups)), groups)
    leaders = rows[_near[key]]
    if (leaders == rows).all():
        return first
    pairs = np.stack([rows, leaders], 1)
    return joined_groups(np.arange(len(dataset)) if first is None else first, [pairs])


def _with_groups(dataset: Dataset, together: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """The groups [N] of copies, joined where images are of one group (`Dataset.groups`)."""
    if dataset.groups is None or not any(dataset.groups):
        return together
    rows = np.flatnonzero(dataset.groups != "")
    _, first, inverse = np.unique(dataset.groups[rows], return_index=True, return_inverse=True)
    pairs = np.stack([rows, rows[first[inverse.reshape(-1)]]], 1)
    return joined_groups(np.arange(len(dataset)) if together is None else together, [pairs])


COMPARED = 100_000  # photographs; among more only equal ones are grouped
COPIES = 20  # more photographs than this are of one kind, as X-rays are, and no copies of each other
_near: dict[bytes, NDArray[np.int64]] = {}  # of the data that were divided last: a sweep divides them again and again


def strength(splits: NDArray[np.str_]) -> NDArray[np.int64]:
    """Rank [N] of each split, 0 for train; other names come after test, no split last."""
    rank = np.where(splits == "", len(STRENGTH) + 1, len(STRENGTH))
    for place, name in enumerate(STRENGTH):
        rank[splits == name] = place
    return rank


# --------------------------------------------------------------------------------------------------------- the memory


@dataclass(frozen=True, eq=False)
class Photos:
    """The photographs of a run, a row each, in the order of its data. names: arrow strings, relative to the data's
    folder where they lie in it; contents [N]; splits [N], "" for those that the run uses for nothing; labels uint64
    [N]: equal for equal labels, whatever the order of classes."""

    names: Any
    contents: Contents
    splits: NDArray[np.str_]
    labels: NDArray[np.uint64]

    @classmethod
    def of(cls, dataset: Dataset, root: str) -> Photos:
        """Of data that are divided. root: the folder that the data lie in, or ""."""
        splits = np.full(len(dataset), "") if dataset.splits is None else dataset.splits
        return cls(names_of(dataset, root), contents(dataset), splits, label_numbers(dataset))

    @classmethod
    def load(cls, folder: Path) -> Photos | None:
        """What a run folder remembers, or None: of runs of plures 0.1.0, and of imported weights."""
        path = folder / PHOTOS
        if not path.is_file():
            return None
        try:
            table = pq.read_table(path).combine_chunks()
            column = table["content"].combine_chunks()
            raw = column.buffers()[1]
            return cls(
                table["image"].combine_chunks(),
                np.frombuffer(raw, f"S{BYTES}", count=len(column), offset=column.offset * BYTES),
                np.array(table["split"].to_pylist(), np.str_),
                table["labels"].to_numpy(),
            )
        except (pa.ArrowException, OSError, KeyError) as error:
            line = " ".join(str(error).split())
            raise PluresError(f"{path}: damaged ({line}); train anew, or bring the file back from a copy") from None

    def save(self, folder: Path) -> None:
        raw = pa.py_buffer(np.ascontiguousarray(self.contents))
        column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(BYTES), len(self.contents), [None, raw])
        columns = [self.names, column, pa.array(self.splits, pa.string()), pa.array(self.labels)]
        table = pa.table(columns, names=["image", "content", "split", "labels"])
        with writing(folder / PHOTOS) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    @property
    def trained(self) -> Contents:
        """The contents that the run was trained on, and the run that it started from."""
        return np.asarray(self.contents[np.isin(self.splits, ["train", STARTED_FROM])])

    @property
    def own(self) -> Photos:
        """Those of the run's own data."""
        rows = self.splits != STARTED_FROM
        if rows.all():
            return self
        return Photos(self.names.filter(rows), self.contents[rows], self.splits[rows], self.labels[rows])

    def started_from(self, other: Photos) -> Photos:
        """These, and behind them what another run was trained on whose weights training starts from."""
        more = np.setdiff1d(other.trained, self.trained)
        names = pa.concat_arrays([self.names, pa.array([""] * len(more), pa.string())])
        splits = np.concatenate([self.splits, np.full(len(more), STARTED_FROM)])
        labels = np.concatenate([self.labels, np.zeros(len(more), np.uint64)])
        return Photos(names, np.concatenate([self.contents, more]), splits, labels)

    def hashes(self) -> dict[str, str]:
        """Of all photographs and of all their labels, whatever their order."""
        order = np.argsort(self.contents, kind="stable")
        return {
            "images_hash": _digest(np.ascontiguousarray(self.contents[order]).data).hex(),
            "labels_hash": _digest(np.ascontiguousarray(self.labels[order]).data).hex(),
        }


def names_of(dataset: Dataset, root: str) -> Any:
    """Arrow strings [N]: paths below the root relative to it, other paths absolute, row numbers of images in memory."""
    if dataset.features is not None:
        return pa.array(list(map(str, dataset.images)), pa.string())
    if dataset.in_memory:
        return pa.array([str(row) for row in range(len(dataset))], pa.string())
    typed, whole = (os.path.join(folder, "") if folder else "\0" for folder in (root, root and os.path.abspath(root)))

    def name(path: str) -> str:
        if path.startswith(typed):
            return path[len(typed) :]
        if is_address(path):
            return path
        path = os.path.abspath(path)
        return path[len(whole) :] if path.startswith(whole) else path

    return pa.array([name(str(image)).encode(errors="replace") for image in dataset.images], pa.string())


def label_numbers(dataset: Dataset) -> NDArray[np.uint64]:
    """A number [N] for the labels of each row that follows from the names of what is present and what is absent: a
    class that is added or moved changes nothing where it is unknown."""
    keys = [[int.from_bytes(_digest(kind, name.encode())[:8]) for name in dataset.classes] for kind in (b"+", b"-")]
    present, absent = (np.array(one, np.uint64) for one in keys)
    numbers = np.empty(len(dataset), np.uint64)
    for start in range(0, len(dataset), ROWS):
        block = dataset.labels.values[start : start + ROWS]
        numbers[start : start + ROWS] = (block == PRESENT) @ present + (block == ABSENT) @ absent  # wraps around
    return numbers


def _places(wanted: Contents, among: Contents) -> NDArray[np.int64]:
    """The first row of `among` with each wanted content, -1 where there is none."""
    if not len(among):
        return np.full(len(wanted), -1)
    order = np.argsort(among, kind="stable")
    at = np.minimum(np.searchsorted(among[order], wanted), len(among) - 1)
    rows = order[at]
    return np.where(among[rows] == wanted, rows, -1)


# ------------------------------------------------------------------------------------------------- the data once more


def recall(known: Photos, dataset: Dataset, root: str, experiment: Experiment, who: str) -> tuple[Dataset, Any]:
    """The data of a run as they are now, divided as the run divided them, in its order (what is new comes last); and
    for each row its place [N] among the run's photographs, -1 for the new ones.

    New photographs are divided by lot with the run's shares, or as the data's own split column says; copies of those
    that the run knows belong to no split. Says in one line what has changed.
    """
    dataset, everything, known = with_contents(dataset), known.contents, known.own
    place, changed = _recognised(known, dataset, root)
    order = np.argsort(np.where(place < 0, len(known.contents), place), kind="stable")
    if (np.diff(order) < 0).any():
        dataset, place, changed = dataset.take(order), place[order], changed[order]
    old, now = place >= 0, contents(dataset)
    new = np.flatnonzero(~old)
    is_copy = np.isin(now[new], everything) if len(new) else np.zeros(0, np.bool_)  # sorts all that is known
    copy, fresh = new[is_copy], new[~is_copy]
    names = set(dataset.split_names())
    given = np.full(len(dataset), "") if dataset.splits is None else dataset.splits
    splits = np.full(len(dataset), "", np.result_type(known.splits, given, "U5"))
    splits[old] = known.splits[place[old]]
    splits[fresh] = given[fresh] if names else "train"
    test_share = experiment.test_share if "test" in known.splits and not names else 0
    val_share = experiment.val_share if "val" in known.splits and "val" not in names else 0
    lots = fresh[splits[fresh] == "train"]
    for row in lots.tolist():
        splits[row] = drawn(now[row], experiment.seed, test_share, val_share)
    _join_their_group(dataset, splits, lots, old, {"train", "val"} if names else set(STRENGTH))
    other = old & (given != "") & (splits != "") & (given != splits)
    if "val" not in names:
        other &= (given != "train") | (splits != "val")  # val was cut off train, as this column has none
    labels = old & ~changed & (label_numbers(dataset) != known.labels[place])
    _say_changes(dataset, who, splits, fresh, copy, len(known.contents) - int(old.sum()), changed, other, labels)
    return replace(dataset, splits=splits), place


def _join_their_group(
    dataset: Dataset, splits: NDArray[np.str_], lots: NDArray[np.int64], old: NDArray[np.bool_], into: set[str]
) -> None:
    """Put new images, drawn one by one (`lots`), where those of their group are that the run knows, if these are in
    one of the splits `into`; else all where the one with the least content was drawn."""
    if dataset.groups is None or not len(lots):
        return
    now, known, leader = contents(dataset), dict[str, str](), dict[str, str]()
    for row in np.flatnonzero(old & np.isin(splits, list(into)) & (dataset.groups != "")).tolist():
        known[dataset.groups[row]] = min(known.get(dataset.groups[row], "test"), str(splits[row]), key=STRENGTH.index)
    for row in lots[np.argsort(now[lots], kind="stable")].tolist():
        if group := str(dataset.groups[row]):
            splits[row] = known.get(group, leader.setdefault(group, splits[row]))


def _say_changes(
    dataset: Dataset,
    who: str,
    splits: NDArray[np.str_],
    fresh: NDArray[np.int64],
    copy: NDArray[np.int64],
    gone: int,
    changed: NDArray[np.bool_],
    other: NDArray[np.bool_],
    labels: NDArray[np.bool_],
) -> None:
    """One line on what is not as it was when the run was trained, if anything."""
    dealt = [(name, int((splits[fresh] == name).sum())) for name in STRENGTH]
    into = ", ".join(f"{count:,} {name}" for name, count in dealt if count)
    one = f" ({dataset.called(int(np.flatnonzero(changed)[0]))})" if changed.any() else ""
    words = {
        f"new{f' ({into})' if into else ''}": len(fresh),
        "new with the content of another, and not judged": len(copy),
        "gone": gone,
        f"of other content{one}": int(changed.sum()),
        f"in another split by the data's own column, where the split of {who} counts": int(other.sum()),
        "labelled otherwise": int(labels.sum()),
    }
    said = "; ".join(f"{_photographs(count)} {what}" for what, count in words.items() if count)
    if said:
        log.warning(f"{dataset.name}: since {who} was trained, {said}")


def _recognised(known: Photos, dataset: Dataset, root: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For each row its place among the known photographs, or -1, no place twice; and where its content has changed.

    Same name and content first, then the same content under another name, then the same name with other content.
    """
    now = contents(dataset)
    by_name = pc.index_in(names_of(dataset, root), value_set=known.names).fill_null(-1).to_numpy().astype(np.int64)
    same = (by_name >= 0) & (known.contents[by_name] == now)
    place = np.where(same, by_name, -1)
    if not same.all():
        rows = np.flatnonzero(~same)
        free = np.setdiff1d(np.arange(len(known.contents)), place[same])
        free = free[np.argsort(strength(known.splits[free]), kind="stable")]
        found = _places(now[rows], known.contents[free])
        _claim(place, rows[found >= 0], free[found[found >= 0]])
    changed = np.zeros(len(dataset), np.bool_)
    rows = np.flatnonzero((place < 0) & (by_name >= 0))
    if len(rows) and not dataset.in_memory:
        rows = rows[~np.isin(now[rows], known.contents)]
        changed[_claim(place, rows, by_name[rows])] = True
    return place, changed


def _claim(place: NDArray[np.int64], rows: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give each wanted place that is free to the first row that asks for it; returns the rows that got theirs."""
    _, first = np.unique(wanted, return_index=True)
    first = first[~np.isin(wanted[first], place[place >= 0])]
    place[rows[first]] = wanted[first]
    return np.asarray(rows[first])


def drawn(content: bytes, seed: int, test_share: float, val_share: float) -> str:
    """The split of one new photograph, by a lot that follows from its content and the seed alone: it stays where it
    is, whatever else is added."""
    lot = int.from_bytes(_digest(f"split {seed} ".encode(), content)[:8]) / 2**64
    if lot < test_share:
        return "test"
    return "val" if lot < test_share + (1 - test_share) * val_share else "train"


def without_trained(known: Photos | None, dataset: Dataset, who: str) -> Dataset:
    """Other data without the photographs that a run was trained on. Raises PluresError if none is left."""
    if known is None:
        return dataset
    dataset = with_contents(dataset)
    trained = np.isin(contents(dataset), known.trained)
    count = int(trained.sum())
    if count == len(dataset):
        raise PluresError(
            f"{dataset.name}: {who} was trained on all {count:,} photographs; give others, or leave DATA out for the"
            " run's own validation and test photographs"
        )
    if count:
        log.warning(f"left out {count:,} of {len(dataset):,} photographs: {who} was trained on them")
    return dataset.take(~trained) if count else dataset


def _photographs(count: int) -> str:
    return f"{count:,} photograph{'s are' if count != 1 else ' is'}"
