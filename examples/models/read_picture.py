"""Text off a picture, with ddddocr: convolutions, then a bidirectional LSTM of 512 units along the picture.

pip install ".[models]" && python examples/models/read_picture.py
"""

import io
import sys
from pathlib import Path

import ddddocr
import onnxruntime
from beside import beside
from PIL import Image, ImageDraw, ImageFont

import gatedrnn.onnx

TEXTS = ["gated", "recurrent", "memory 42", "x7kQ9", "forget"]


def picture(text):
    """Draw a text, and return the bytes of a PNG file."""
    font = ImageFont.load_default(40)
    image = Image.new("RGB", (int(font.getlength(text)) + 24, 64), "white")
    ImageDraw.Draw(image).text((12, 8), text, "black", font)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def main(texts=TEXTS):
    onnxruntime.set_default_logger_severity(3)  # of outputs whose shape is not the one that the file says
    before = ddddocr.DdddOcr(beta=True, show_ad=False)
    model = Path(ddddocr.__file__).with_name("common.onnx")

    now = ddddocr.DdddOcr(beta=True, show_ad=False)
    now.ocr_engine.session = gatedrnn.onnx.InferenceSession(model)

    pictures = [picture(text) for text in texts]

    def read(ocr):
        return [ocr.classification(image) for image in pictures]

    theirs, ours = beside(f"{len(texts)} pictures", lambda: read(before), lambda: read(now))
    for text, found in zip(texts, ours, strict=True):
        print(f"{text}: {found}")
    print(f"the same: {sum(a == b for a, b in zip(theirs, ours, strict=True))} of {len(texts)}")
    for precision in ("bfloat16", "int8"):
        now.ocr_engine.session = gatedrnn.onnx.InferenceSession(model, precision)
        print(f"the same in {precision}: {sum(a == b for a, b in zip(theirs, read(now), strict=True))}")
    return theirs, ours


if __name__ == "__main__":
    main(sys.argv[1:] or TEXTS)
