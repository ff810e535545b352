"""Tags of photos by an exported model: needs onnxruntime, numpy and Pillow, nothing of plures.

python examples/onnx_inference.py model.onnx photo.jpg another.jpg
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation -> Pillow's transpose


def upright_rgb(image):
    if image.mode[0] in "IF":  # grey of more than 8 bits, which plures scales by rules of its own
        raise SystemExit(f"{image.filename}: pixels of mode {image.mode}, not of 8 bits; save it as an 8-bit PNG first")
    try:
        turn = TURNS.get(image.getexif().get(0x0112))
    except Exception:  # broken EXIF: the pixels are fine
        turn = None
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB") if turn is None else image.convert("RGB").transpose(turn)


def main(model, photos):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["plures"])
    for photo in photos:
        pixels = np.asarray(upright_rgb(Image.open(photo))).transpose(2, 0, 1)[None]  # [1, 3, H, W]; it resizes
        scores, tags = session.run(["scores", "tags"], {"images": np.ascontiguousarray(pixels)})
        found = sorted(zip(scores[0], about["classes"], tags[0], strict=True), reverse=True)
        print(f"{photo}: {'  '.join(f'{name} {score:.2f}' for score, name, called in found if called) or '(no tag)'}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
