"""Decoding whatever people have, refusing what cannot be read in one line, and augmenting reproducibly."""

import contextlib
import io
import os
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from plures.data import photos as module
from plures.data.checks import verify
from plures.data.checks.verify import is_sound_jpeg, verify_images
from plures.data.dataset import Dataset
from plures.data.photos import (
    IMAGE_SUFFIXES,
    Transform,
    Unreadable,
    is_junk,
    is_photo,
    list_images,
    open_image,
    open_pixels,
    random_for,
    unread_below,
)
from plures.data.pixels import to_bytes
from plures.data.randaugment import cutout, randaugment
from plures.errors import PluresError
from plures.labels import Labels


def _photo(mode="RGB", size=(40, 30)):
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    rgb = np.stack([x, y, 255 - x], -1).astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA", "LA", "1"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    suffix = "jpg" if mode in ("CMYK", "RGB") else "png"
    _photo(mode).save(tmp_path / f"a.{suffix}")
    image = open_image(tmp_path / f"a.{suffix}")
    assert image.mode == "RGB"
    assert image.size == (40, 30)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    Image.fromarray(np.array([[0, 32768, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(open_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 127, 255]


def test_alpha_is_laid_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert np.asarray(open_image(tmp_path / "a.png")).min() == 255


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    _photo().save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg").size == (30, 40)


def _broken_files():
    buffer = io.BytesIO()
    _photo(size=(200, 200)).save(buffer, "JPEG")
    whole = buffer.getvalue()
    return {
        "empty.jpg": b"",
        "text.jpg": b"this is no image",
        "truncated.jpg": whole[: len(whole) // 2],
        "head.png": b"\x89PNG\r\n\x1a\n" + b"\0" * 20,
    }


@pytest.mark.parametrize("name", sorted(_broken_files()))
def test_broken_files_are_one_line_with_the_name(tmp_path, name):
    (tmp_path / name).write_bytes(_broken_files()[name])
    with pytest.raises(Unreadable) as caught:
        open_image(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file():
    with pytest.raises(Unreadable, match="no such file"):
        open_image("nowhere/a.jpg")


def test_too_many_pixels_are_refused_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_PIXELS", 100)
    _photo().save(tmp_path / "a.png")
    with pytest.raises(Unreadable, match="40 x 30 pixels; at most 100"):
        open_image(tmp_path / "a.png")


def test_transform_is_torchvisions_resize_and_nearly_pillows():
    """torch and Pillow resize bytes by the same weights and round in another order: at most 2 of 256 levels."""
    from torchvision.transforms.v2 import functional as F

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (97, 133, 3), dtype=np.uint8))
    ours = Transform(64)(image)
    assert torch.equal(ours, F.resize(F.pil_to_tensor(image), [64, 64], antialias=True))
    assert ours.dtype == torch.uint8
    pillows = F.pil_to_tensor(image.resize((64, 64), Image.Resampling.BILINEAR)).int()
    assert (ours.int() - pillows).abs().max() <= 2
    assert (ours.int() - pillows).ne(0).float().mean() < 0.1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["RGB", "4:2:0", "progressive", "stored as RGB", "L", "CMYK", "PNG"])
def test_pixels_are_those_of_the_image_however_they_are_decoded(tmp_path, monkeypatch, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    x, y = np.meshgrid(np.linspace(0, 9, 133), np.linspace(0, 7, 97))
    waves = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1)
    photo = Image.fromarray((127 + 100 * waves).astype(np.uint8)).convert(kind if kind in ("L", "CMYK") else "RGB")
    extra = {"4:2:0": {"subsampling": 2}, "progressive": {"progressive": True}, "stored as RGB": {"keep_rgb": True}}
    photo.save(tmp_path / "a", "PNG" if kind == "PNG" else "JPEG", exif=exif, **extra.get(kind, {}))
    wanted = np.asarray(open_image(tmp_path / "a")).transpose(2, 0, 1)
    for decoder in (module.simplejpeg, None):
        monkeypatch.setattr(module, "simplejpeg", decoder)
        for at_least in (None, 90):
            assert np.array_equal(open_pixels(tmp_path / "a", at_least).numpy(), wanted)
    scaled = open_pixels(tmp_path / "a", 40)
    assert np.array_equal(scaled.numpy(), np.asarray(open_image(tmp_path / "a", 40)).transpose(2, 0, 1))
    assert (scaled.shape[1] < wanted.shape[1]) == (kind != "PNG")


def test_a_crop_is_the_part_of_the_image_that_its_view_says():
    y, x = np.mgrid[:60, :90]
    image = Image.fromarray(np.stack([x * 2, y * 4, x * 0], -1).astype(np.uint8))
    crop = Transform(16, "crop", crop_area=(0.2, 0.9))
    for row in range(50):
        pixels, (left, top, right, bottom) = crop.with_view(image, random_for(0, 0, row))
        assert 0 <= min(left, right) < max(left, right) <= 1
        assert 0 <= top < bottom <= 1
        assert pixels.float().mean(1)[0].diff().mean().sign() == (1 if right > left else -1)
        middle = pixels[:2].float().mean((1, 2))
        assert abs(middle[0] / 2 - 90 * (left + right) / 2) < 1.5
        assert abs(middle[1] / 4 - 60 * (top + bottom) / 2) < 1.5


def test_augmentation_follows_from_seed_epoch_and_row():
    image, crop = _photo(), Transform(16, "crop")
    same = [crop(image, random_for(1, 2, 3)) for _ in range(2)]
    assert torch.equal(*same)
    others = [crop(image, random_for(*key)) for key in ((0, 2, 3), (1, 1, 3), (1, 2, 2))]
    assert not any(torch.equal(same[0], other) for other in others)


def test_flip_flips_about_half():
    image, flip = _photo(), Transform(16, "flip")
    plain = Transform(16)(image)
    results = [flip(image, random_for(0, 0, row)) for row in range(400)]
    flipped = sum(torch.equal(r, plain.flip(2)) for r in results)
    assert flipped + sum(torch.equal(r, plain) for r in results) == 400
    assert 150 < flipped < 250


def test_cutout_and_randaugment_follow_from_the_generator_and_leave_torchs_alone():
    image, transform = _photo(size=(64, 64)), Transform(48, "cutout_randaugment")
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    results = [transform(image, random_for(0, 0, row)) for row in range(40)]
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(4)
    again = [transform(image, random_for(0, 0, row)) for row in range(40)]
    assert all(torch.equal(a, b) for a, b in zip(results, again, strict=True))
    assert all(r.shape == (3, 48, 48) and r.dtype == torch.uint8 for r in results)
    assert len({bytes(r.numpy()) for r in results}) == 40
    assert torch.equal(Transform(48, "cutout_randaugment")(image), Transform(48)(image))


def test_cutout_is_one_rectangle_of_half_the_sides_in_one_colour():
    image = _photo(size=(60, 40))
    shares = []
    for row in range(300):
        cut = np.asarray(cutout(image, random_for(0, 1, row)))
        changed = (cut != np.asarray(image)).any(-1)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        area = cut[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert area.shape[0] <= 20
        assert area.shape[1] <= 30
        assert (area == area[0, 0]).all()
        shares.append(area.shape[0] * area.shape[1] / (20 * 30))
    assert max(shares) == 1  # whole inside the image at times, clipped at its edge at others
    assert 0.72 < np.mean(shares) < 0.81  # (7/8)^2 for centres anywhere


def test_a_quarter_of_images_stay_as_randaugment_found_them():
    image = _photo(size=(32, 32))
    untouched = sum(randaugment(image, random_for(0, 2, row)) is image for row in range(400))
    assert 70 < untouched < 130


def test_list_images(tmp_path):
    with pytest.raises(PluresError, match="no image files"):
        list_images(tmp_path)
    (tmp_path / "sub").mkdir()
    _photo().save(tmp_path / "sub" / "b.JPG", "JPEG")
    _photo().save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no")
    assert [p.rsplit("/", 1)[1] for p in list_images(tmp_path)] == ["a.png", "b.JPG"]


def test_large_jpegs_are_decoded_smaller_and_look_the_same(tmp_path):
    x, y = np.meshgrid(np.linspace(0, 20, 1200), np.linspace(0, 15, 900))
    waves = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1)
    photo = Image.fromarray((127 + 100 * waves).astype(np.uint8))
    photo.save(tmp_path / "a.jpg", quality=95)
    assert open_image(tmp_path / "a.jpg").size == (1200, 900)
    assert open_image(tmp_path / "a.jpg", 224).size == (300, 225)
    assert open_image(tmp_path / "a.jpg", 226).size == (600, 450)
    assert open_image(tmp_path / "a.jpg", 901).size == (1200, 900)  # never enlarged
    fast, full = (Transform(224)(open_image(tmp_path / "a.jpg", n)).int() for n in (224, None))
    assert (fast - full).abs().float().mean() < 1
    photo.save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png", 224).size == (1200, 900)


def test_a_scaled_image_has_twice_the_pixels_and_its_smallest_crop_still_enough():
    assert Transform(100, "flip").decoding_size == Transform(100, "crop").decoding_size == 200
    least = Transform(100, "crop", crop_area=(0.1, 1.0)).decoding_size
    area = 0.1
    assert least * np.sqrt(area * 3 / 4) >= 100 > (least - 2) * np.sqrt(area * 3 / 4)


def test_images_at_addresses_and_in_stretches_of_files(tmp_path):
    import fsspec

    _photo().save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    fsspec.filesystem("memory").pipe_file("/bucket/a.png", content)
    (tmp_path / "many.bin").write_bytes(b"x" * 100 + content + b"y" * 50)
    for where in ("memory://bucket/a.png", f"{tmp_path / 'many.bin'}#100:{len(content)}"):
        assert np.array_equal(np.asarray(open_image(where)), np.asarray(_photo())), where
    with pytest.raises(Unreadable, match=r"memory://bucket/b\.png: no such file"):
        open_image("memory://bucket/b.png")


# ------------------------------------------------------------------------------------------------- kinds of pixels

RAMP = np.linspace(0, 255, 40 * 30).round().astype(np.uint8).reshape(30, 40)  # grey; every depth below is made of it


def _tiff(path, values, **tags):
    Image.fromarray(values).save(path, tiffinfo={int(tag[1:]): value for tag, value in tags.items()})


def _depths():
    wide = RAMP.astype(np.uint16)
    return {
        "16.png": lambda p: Image.fromarray(wide * 257).save(p),
        "16.tif": lambda p: _tiff(p, wide * 257),
        "12.png": lambda p: Image.fromarray(wide * 16 + wide // 16).save(p),
        "12.tif": lambda p: _tiff(p, wide * 16 + wide // 16),
        "10.tif": lambda p: _tiff(p, wide * 4 + wide // 64),
        "8 in 32.tif": lambda p: _tiff(p, RAMP.astype(np.int32)),
        "float to 1.tif": lambda p: _tiff(p, (RAMP / 255).astype(np.float32)),
        "float to 255.tif": lambda p: _tiff(p, RAMP.astype(np.float32)),
        "declared.tif": lambda p: _tiff(p, wide * 50, t280=0, t281=255 * 50),
        "signed.tif": lambda p: _tiff(p, RAMP.astype(np.int32) * 8 - 1000),
        "16.pgm": lambda p: p.write_bytes(b"P5 40 30 4095\n" + (wide * 16 + wide // 16).astype(">u2").tobytes()),
    }


@pytest.mark.parametrize("name", _depths())
def test_every_depth_is_scaled_to_eight_bits(tmp_path, name):
    _depths()[name](tmp_path / name)
    got = np.asarray(open_image(tmp_path / name)).astype(int)
    assert (got[..., 0] == got[..., 2]).all()
    assert np.abs(got[..., 0] - RAMP).max() <= 1  # the bits below the eighth are rounded down


@pytest.mark.parametrize(
    ("values", "declared", "wanted"),
    [
        (np.array([[0, 100]], np.uint16), None, [0, 100]),  # 8 bits
        (np.array([[0, 1023]], np.uint16), None, [0, 255]),  # 10
        (np.array([[0, 1024]], np.uint16), None, [0, 63]),  # 11 bits are taken for 12, of which 1024 is a quarter
        (np.array([[0, 2**31 - 1]], np.int32), None, [0, 127]),  # 32
        (np.array([[-1000, 0, 1000]], np.int32), None, [0, 127, 255]),
        (np.array([[0, 50, 100]], np.uint16), (0, 100), [0, 127, 255]),
        (np.array([[0, 200]], np.uint16), (0, 100), [0, 200]),  # which is not true of this file
        (np.array([[0.0, 0.5, 1.05]], np.float32), None, [0, 128, 255]),
        (np.array([[0.0, 128, 255]], np.float32), None, [0, 128, 255]),
        (np.array([[np.nan, np.inf, 1.0]], np.float32), None, [0, 255, 255]),
        (np.array([[np.nan]], np.float32), None, [0]),
        (np.array([[-3.0, -3.0]], np.float32), None, [0, 0]),
    ],
)
def test_the_rule_for_more_than_eight_bits(values, declared, wanted):
    assert to_bytes(values, declared)[0].tolist() == wanted


# ------------------------------------------------------------------------------------------------------------ EXIF

EXIF_TAGS = {0x010F: 7, 0x011A: "x", 0x011B: b"\0", 0x0132: 3, 0x8769: 99_999, 0x8825: 5, 0x0100: "wide"}


def mutated_exif(rng):
    """An EXIF block with an orientation and odd tags, bytes of it changed, cut or repeated."""
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(0, 10))
    for tag in rng.choice(list(EXIF_TAGS), rng.integers(0, 4), replace=False).tolist():
        with contextlib.suppress(Exception):
            exif[tag] = EXIF_TAGS[tag]
            exif.tobytes()
    try:
        block = bytearray(exif.tobytes())
    except Exception:
        del exif
        block = bytearray(b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0")
    for _ in range(rng.integers(0, 6)):
        block[rng.integers(len(block))] = rng.integers(256)
    if rng.random() < 0.2:
        block = block[: rng.integers(1, len(block) + 1)]
    return bytes(block)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(("form", "suffix"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_no_exif_costs_a_photograph_whose_pixels_are_fine(form, suffix):
    rng, read_otherwise = np.random.default_rng(7), 0
    for number in range(400):
        block, file = mutated_exif(rng), io.BytesIO()
        try:
            _photo(size=(12, 8)).save(file, form, exif=block)
            with Image.open(io.BytesIO(file.getvalue())) as plain:
                pixels = np.asarray(plain.convert("RGB"))
        except Exception:
            continue  # Pillow itself cannot write or read it
        found = np.asarray(open_image(io.BytesIO(file.getvalue())))
        read_otherwise += not np.array_equal(found, pixels)
        assert sorted(found.shape) == sorted(pixels.shape), number
    assert read_otherwise > 20  # turned


@pytest.mark.parametrize("tag", [0x010F, 0x011A, 0x0100, 0x0132])
def test_the_orientation_counts_beside_a_broken_tag(tmp_path, tag):
    """As in the real files: `Image.open(...).convert` reads them, `ImageOps.exif_transpose` fails."""
    entries = sorted([(tag, 2, 4, b"abc\0"), (0x0112, 3, 1, b"\x06\0\0\0")])
    ifd = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    block = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + ifd + b"\0\0\0\0"
    _photo().save(tmp_path / "a.jpg", exif=block)
    assert open_image(tmp_path / "a.jpg").size == (30, 40)


# --------------------------------------------------------------------------------------------- which files, and what


def test_what_pillow_opens_is_an_image_and_what_macos_leaves_is_not(tmp_path):
    assert {".jpg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".gif", ".pgm", ".jp2"} <= IMAGE_SUFFIXES
    assert not {".pdf", ".eps", ".mpg", ".hdf", ".ico", ".wmf"} & IMAGE_SUFFIXES
    assert is_photo("A.JFIF")
    assert not is_photo("a.txt")
    for junk in ("._a.jpg", "x/._a.jpg", "__MACOSX/a.jpg", "x/__MACOSX/y/a.jpg", "x\\__MACOSX\\a.jpg"):
        assert is_junk(junk)
        assert not is_photo(junk)
    assert not is_junk("x/_a.jpg")
    (tmp_path / "__MACOSX").mkdir()
    for name in ("a.jfif", "b.jpe", "._a.jpg", "__MACOSX/c.jpg"):
        _photo().save(tmp_path / name, "JPEG")
    for name in ("d.jxl", "e.jxl", "f.CR2", "._f.CR2", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [Path(p).name for p in list_images(tmp_path)] == ["a.jfif", "b.jpe"]
    (notice,) = unread_below(tmp_path)
    assert notice.severity == "notice"
    assert notice.what.startswith("3 photographs are left out: 1 .cr2 (is camera raw; export")
    assert "2 .jxl (" in notice.what


@pytest.mark.skipif(find_spec("pillow_heif") is not None, reason="HEIC is read here")
def test_heic_without_its_extra_is_counted_and_says_which(tmp_path):
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "b.jpg").write_bytes(b"\0\0\0\x18ftypheic")
    assert 'pip install "plures[heic]"' in unread_below(tmp_path)[0].what
    with pytest.raises(Unreadable, match=r'b\.jpg: HEIC, which needs pip install "plures\[heic\]"'):
        open_image(tmp_path / "b.jpg")


@pytest.mark.skipif(find_spec("pillow_heif") is None, reason='needs pip install "plures[heic]"')
def test_heic_is_read_with_its_extra(tmp_path):
    _photo(size=(64, 48)).save(tmp_path / "a.heic", quality=95)
    image = open_image(tmp_path / "a.heic")
    assert (image.mode, image.size) == ("RGB", (64, 48))
    assert list_images(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "Git LFS pointer, .*git lfs pull"),
        (b"\n<!-- x --><!DOCTYPE html><html>404</html>", "HTML page"),
        (b"<html><body>404 not found</body></html>", "HTML page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML file"),
        (b"<?xml version='1.0'?><svg></svg>", "SVG"),
        (b"\x00\x05\x16\x07\x00\x02", "macOS"),
        (b"%PDF-1.7", "PDF"),
        (bytes(900), "only zeros"),
        (b"", "empty"),
        (b"<3 photographs", "not an image that can be read"),
    ],
)
def test_what_lies_there_instead_of_a_photograph_is_named(tmp_path, content, words):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(Unreadable, match=rf"a\.jpg: .*{words}"):
        open_image(tmp_path / "a.jpg")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_folders_and_links_to_nothing_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").mkdir()
    (tmp_path / "c.jpg").symlink_to("nowhere.jpg")
    for name, words in (("a", "a pipe or device"), ("b", "a folder"), ("c", "a link to no file")):
        with pytest.raises(Unreadable, match=rf"{name}\.jpg: {words}"):
            open_image(tmp_path / f"{name}.jpg")


def test_pillow_is_left_as_it_was_found(tmp_path, monkeypatch):
    code = (
        "from PIL import Image; before = Image.MAX_IMAGE_PIXELS; import plures.data.photos, plures.data.checks.verify;"
    )
    done = subprocess.run([sys.executable, "-c", f"{code} assert Image.MAX_IMAGE_PIXELS == before is not None"])
    assert done.returncode == 0
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # the program around us allows less
    _photo().save(tmp_path / "a.png")
    with pytest.raises(Unreadable, match=r"a\.png: 1,200 pixels; at most 100,000,000 are read"):
        open_image(tmp_path / "a.png")


# --------------------------------------------------------------------------------- check and training decide alike


def _jpeg(**options):
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "JPEG", **options)
    return file.getvalue()


def _with_thumbnail():
    return _jpeg(exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + _jpeg(quality=20)[:4000] + b"\xff\xd9" * 40)


def _cut():
    whole = {f"cut.{form.lower()}": io.BytesIO() for form in ("BMP", "GIF", "TIFF", "PNG", "WEBP", "PPM")}
    for name, file in whole.items():
        Image.open(io.BytesIO(_jpeg())).save(file, name[4:].upper())
    files = {name: file.getvalue()[: len(file.getvalue()) * 2 // 3] for name, file in whole.items()}
    files["end gone.jpg"] = _jpeg()[:-2]
    thumb = _with_thumbnail()
    files["thumbnail.jpg"] = thumb[: thumb.index(b"\xff\xda") + 3000]
    tables = bytearray(_jpeg())
    tables[tables.index(b"\xff\xc4") + 5] = 200  # more codes of one bit than there are
    files["tables.jpg"] = bytes(tables)
    return files


@pytest.mark.parametrize("name", _cut())
def test_what_training_cannot_decode_is_named_before(tmp_path, name):
    (tmp_path / name).write_bytes(_cut()[name])
    with pytest.raises(Unreadable):
        open_image(tmp_path / name)
    data = Dataset([str(tmp_path / name)], Labels(np.ones((1, 1), np.int8)), ("x",))
    assert [row for row, _ in verify_images(data)] == [0]


def test_sound_jpegs_pass_without_being_decoded(tmp_path, monkeypatch):
    for name, content in {
        "a": _jpeg(), "b": _jpeg(progressive=True), "c": _jpeg(comment=b"x" * 70), "d": _with_thumbnail(),
        "e": _jpeg() + b"\0" * 3000,
    }.items():  # fmt: skip
        (tmp_path / f"{name}.jpg").write_bytes(content)
    _photo("L").save(tmp_path / "grey.jpg")
    _photo("CMYK").save(tmp_path / "cmyk.jpg")
    files = list_images(tmp_path)
    monkeypatch.setattr(verify, "decoded", lambda image: pytest.fail("decoded"))
    assert verify_images(Dataset(files, Labels(np.ones((len(files), 1), np.int8)), ("x",))) == []


def test_mutated_jpegs_are_judged_as_training_reads_them():
    """A JPEG that passes without being decoded can be decoded, whatever bytes of its head are changed."""
    rng, whole, passed, refused = np.random.default_rng(3), _jpeg(quality=30), 0, 0
    head = whole.index(b"\xff\xda") + 14
    for _ in range(3000):
        content = bytearray(whole)
        for _ in range(rng.integers(1, 3)):
            content[rng.integers(head)] = rng.integers(256)
        if not is_sound_jpeg(io.BytesIO(content)):
            refused += 1
            continue
        with contextlib.suppress(Unreadable):
            open_image(io.BytesIO(content))
            passed += 1
            continue
        pytest.fail(f"sound, but not decoded: {content[:head].hex()}")
    assert min(passed, refused) > 100
