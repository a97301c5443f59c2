"""Make a sample container: digits as real JPEG images, `MNIST_FLAT/<class>/<class>_<i>.jpg`, 28 x 28 pixels.

Usage: make_sample.py DIRECTORY [--per-class N]. A second run with the same numbers changes nothing.
"""

import argparse
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CLASSES = tuple(
    f"{i} - {word}"
    for i, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"))
)


def digit_image(digit: int, seed: int) -> Image.Image:
    """Draw one digit, a little turned and moved, so that no two files are alike."""
    rng = random.Random(digit * 1_000_003 + seed)
    image = Image.new("L", (28, 28), rng.randrange(0, 24))
    font = ImageFont.load_default(size=rng.randrange(18, 25))
    at = (rng.randrange(4, 12), rng.randrange(0, 5))
    ImageDraw.Draw(image).text(at, str(digit), fill=rng.randrange(190, 256), font=font)
    return image.rotate(rng.uniform(-18, 18), resample=Image.Resampling.BILINEAR)


def write_image(path: Path, digit: int, seed: int) -> bool:
    """Write one file whole or not at all; False if it was there."""
    if path.exists():
        return False
    unfinished = path.with_suffix(".part")
    digit_image(digit, seed).save(unfinished, "JPEG", quality=75)
    unfinished.replace(path)
    return True


def make_sample(container: Path, per_class: int) -> int:
    """Fill `container` and return how many files were new."""
    made = 0
    for digit, name in enumerate(CLASSES):
        folder = container / "MNIST_FLAT" / name
        folder.mkdir(parents=True, exist_ok=True)
        made += sum(write_image(folder / f"{name}_{i}.jpg", digit, i) for i in range(per_class))
    return made


def main() -> None:
    """Read the arguments and say what was done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--per-class", type=int, default=40)
    args = parser.parse_args()
    made = make_sample(args.directory, args.per_class)
    print(f"{made} new images" if made else "all images are there already")


if __name__ == "__main__":
    main()
