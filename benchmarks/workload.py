"""The data that is read: the seed's shape, 10 classes x 1,000 images of about 700 bytes, and one file of 1 GiB."""

import io
import os
import random
from pathlib import Path

import numpy
from PIL import Image

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PER_CLASS = 1000
SMALL_BYTES = 700
BIG_BYTES = 1 << 30
TABLE_ROWS = 40


def make_small(container: Path, per_class: int = PER_CLASS) -> Path:
    """Write `MNIST_FLAT/<class>/<class>_<i>.jpg`; the bytes do not matter here, only their number."""
    rng = random.Random(7)
    for digit, word in enumerate(CLASSES):
        folder = container / "MNIST_FLAT" / f"{digit} - {word}"
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            (folder / f"{folder.name}_{i}.jpg").write_bytes(rng.randbytes(SMALL_BYTES))
    return container


def make_images(container: Path, classes: int, per_class: int) -> Path:
    """Write the same tree of real images, as the seed's: grey, 28 x 28, about 700 bytes each, no two alike."""
    rng = numpy.random.default_rng(7)
    for digit, word in enumerate(CLASSES[:classes]):
        folder = container / "MNIST_FLAT" / f"{digit} - {word}"
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            pixels = rng.normal(128, 20, (28, 28)).clip(0, 255).astype("u1")
            (folder / f"{folder.name}_{i}.jpg").write_bytes(jpeg(pixels))
    return container


def jpeg(pixels: "numpy.typing.NDArray[numpy.uint8]") -> bytes:
    """Encode grey pixels."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=82)
    return out.getvalue()


def make_tables(container: Path, count: int) -> Path:
    """Write `TABLES/<i>.csv`, about 700 bytes each, for those who read with pandas."""
    rng = random.Random(13)
    folder = container / "TABLES"
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        rows = [f"{row},{rng.randrange(10)},{rng.random():.8f}" for row in range(TABLE_ROWS)]
        (folder / f"{i}.csv").write_text("\n".join(["id,label,score", *rows]) + "\n")
    return container


def make_big(container: Path) -> Path:
    """Write `big/one.bin`, 1 GiB of noise: a block of 4 MiB over and over, each time with its number in front."""
    folder = container / "big"
    folder.mkdir(parents=True, exist_ok=True)
    block = random.Random(11).randbytes((4 << 20) - 8)
    with open(folder / "one.bin", "wb") as file:
        for i in range(BIG_BYTES // (4 << 20)):
            file.write(i.to_bytes(8, "little") + block)
        os.fsync(file.fileno())
    return container
