"""Decoding whatever people have, refusing what cannot be read in one line, and augmenting reproducibly."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from plures.data import images as module
from plures.data.images import Transform, Unreadable, list_images, open_image, random_for
from plures.data.randaugment import cutout, randaugment
from plures.errors import PluresError


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


def test_transform_is_torchvisions_resize():
    from torchvision.transforms import functional as F

    image = _photo(size=(133, 97))
    ours = Transform(64)(image)
    theirs = F.pil_to_tensor(F.resize(image, [64, 64]))
    assert torch.equal(ours, theirs)
    assert ours.dtype == torch.uint8


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
