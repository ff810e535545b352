"""Tags of photos by an exported model: needs onnxruntime, numpy and Pillow, nothing of plures.

python examples/onnx_inference.py model.onnx photo.jpg another.jpg
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def main(model, photos):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["plures"])
    for photo in photos:
        with Image.open(photo) as image:
            pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))  # upright, [H, W, 3]
        images = pixels.transpose(2, 0, 1)[None]  # [1, 3, H, W]; the model resizes and normalises
        scores, tags = session.run(["scores", "tags"], {"images": np.ascontiguousarray(images)})
        found = sorted(zip(scores[0], about["classes"], tags[0], strict=True), reverse=True)
        words = "  ".join(f"{name} {score:.2f}" for score, name, called in found if called)
        print(f"{photo}: {words or '(no tag)'}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
