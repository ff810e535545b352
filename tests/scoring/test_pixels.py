"""One file has the same pixels on every road: training, predict, serve, review and the example beside an export."""

import io
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plures.data.dataset import Dataset
from plures.data.loading import ImageBatches, Order
from plures.data.photos import Transform, open_image
from plures.export.checks import pixels_of
from plures.labels import Labels
from plures.models import build_model
from plures.scoring.predictor import _decode

pytest.importorskip("onnxruntime", reason='the example needs pip install "plures[export]"')
pytest.importorskip("fastapi", reason='needs pip install "plures[web]"')
from plures.web.pictures import Pictures
from plures.web.uploads import decode

EXAMPLE = Path(__file__).parents[2] / "examples" / "onnx_inference.py"
SIDE = 24
Y, X = np.mgrid[:30, :40] / 40
COLOUR = (255 * np.stack([X, Y, 1 - X], -1)).astype(np.uint8)  # [30, 40, 3], no two corners alike
GREY = COLOUR[..., 0].astype(np.uint16)
ALPHA = np.where(X < 0.5, 0, 200)[..., None].astype(np.uint8)


def _picture(mode="RGB"):
    return Image.fromarray(COLOUR).convert(mode)


def _see_through():
    image = _picture("P")
    image.info["transparency"] = image.getpixel((3, 3))
    return image


def _with_exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif.tobytes()}


BROKEN = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\x1a\x01\x02\0\x04\0\0\0abc\0\0\0\0\0"
FILES = {  # name -> image, options of save, whether the example reads it
    "rgb.png": (_picture(), {}, True),
    "grey.png": (_picture("L"), {}, True),
    "bilevel.png": (_picture("1"), {}, True),
    "palette.png": (_picture("P"), {}, True),
    "palette see-through.png": (_see_through(), {}, True),
    "rgba.png": (Image.fromarray(np.concatenate([COLOUR, ALPHA], -1)), {}, True),
    "la.png": (Image.fromarray(np.concatenate([COLOUR[..., :1], ALPHA], -1), "LA"), {}, True),
    "cmyk.jpg": (_picture("CMYK"), {}, True),
    "cmyk.tif": (_picture("CMYK"), {}, True),
    "ycbcr.tif": (_picture("YCbCr"), {}, True),
    "lab.tif": (_picture("LAB"), {}, True),
    "rgba.webp": (Image.fromarray(np.concatenate([COLOUR, ALPHA], -1)), {"lossless": True}, True),
    "16.png": (Image.fromarray(GREY * 257), {}, False),
    "12.png": (Image.fromarray(GREY * 16), {}, False),
    "10.tif": (Image.fromarray(GREY * 4), {}, False),
    "int32.tif": (Image.fromarray(GREY.astype(np.int32)), {}, False),
    "float.tif": (Image.fromarray((GREY / 255).astype(np.float32)), {}, False),
    "animated.gif": (_picture(), {"save_all": True, "append_images": [_picture("L").convert("RGB")]}, True),
    **{f"turned {o}.jpg": (_picture(), _with_exif(o), True) for o in range(1, 9)},
    "turned 6.png": (_picture(), _with_exif(6), True),
    "turned 6.webp": (_picture(), _with_exif(6), True),
    "turned 6, 12 bit.png": (Image.fromarray(GREY * 16), _with_exif(6), False),
    "turned beside a broken tag.jpg": (_picture(), {"exif": BROKEN}, True),
}


@pytest.fixture(scope="module")
def upright_rgb():
    return runpy.run_path(str(EXAMPLE))["upright_rgb"]


@pytest.mark.parametrize("name", FILES)
def test_one_file_has_the_same_pixels_on_every_road(tmp_path, upright_rgb, name):
    image, options, read_by_example = FILES[name]
    path = tmp_path / name
    image.save(path, **options)
    transform = Transform(SIDE)
    upright = open_image(path)
    pixels = transform(upright)
    # what it looks like: the picture itself, turned; within what JPEG, palettes and dithering change
    grey = np.asarray(upright.resize((2, 2) if "bilevel" in name else upright.size, Image.Resampling.BOX)).mean(-1)
    assert grey.max() > 60, "nearly black"
    turned = any(word in name for word in ("turned 5", "turned 6", "turned 7", "turned 8", "beside"))
    assert upright.size == ((30, 40) if turned else (40, 30))

    data = Dataset([str(path)], Labels(np.ones((1, 1), np.int8)), ("x",))
    (batch,) = ImageBatches(data, transform, Order(1, 1)).epoch(0)
    assert batch.inputs[0].equal(pixels), "training"
    assert _decode((name, str(path)), transform)[0].equal(pixels), "predict"
    assert decode(path.read_bytes(), name, transform, 10**6).pixels.equal(pixels), "serve"
    model = build_model("small_conv", "linear", ("x",), {"image_size": SIDE})
    (checked,) = pixels_of(model, [str(path)], 1)
    assert np.array_equal(checked[0], pixels.numpy()), "the cost of 8 bits at export"
    shown = np.asarray(Image.open(io.BytesIO(Pictures(data).photo(0))).convert("RGB"), np.int16)
    assert shown.shape == np.asarray(upright).shape, "review"
    assert np.abs(shown - np.asarray(upright)).mean() < 20, "review, as a JPEG, which blurs the dots of a palette"

    with Image.open(path) as opened:
        if read_by_example:
            assert np.array_equal(np.asarray(upright_rgb(opened)), np.asarray(upright)), "the example"
        else:
            with pytest.raises(SystemExit, match="not of 8 bits; save it as an 8-bit PNG first"):
                upright_rgb(opened)
