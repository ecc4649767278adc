"""Draws pictures to try training on: small steel parts on scratched steel, with COCO annotations.

    python examples/draw_scenes.py parts/ --count 60

writes parts/000.png … and parts/annotations.json, the same ones every time.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = (640, 480)


def plate(rng):
    """Brushed steel: grey, streaked, with scratches and marks that are no parts."""
    width, height = SIZE
    streaks = rng.normal(0, 12, (height, 1)) + rng.normal(0, 9, (height, width))
    shade = rng.uniform(90, 160) + np.linspace(-25, 25, width) * rng.uniform(-1, 1)
    grey = np.clip(shade + streaks, 0, 255).astype(np.uint8)
    image = Image.fromarray(np.repeat(grey[..., None], 3, axis=2))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(6, 14)):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        angle, length = rng.uniform(0, 2 * math.pi), rng.uniform(40, 300)
        end = (x + length * math.cos(angle), y + length * math.sin(angle))
        shade = int(rng.integers(60, 200))
        draw.line([(x, y), end], fill=(shade,) * 3, width=int(rng.integers(1, 4)))
    return image


def outline(kind, radius, rng):
    """Returns the corners of a part around the origin, and the radius of its hole."""
    if kind == "bolt":
        long, thin = radius, radius * 0.22
        corners = [
            (-long, -2 * thin), (-0.6 * long, -2 * thin), (-0.6 * long, -thin), (long, -thin),
            (long, thin), (-0.6 * long, thin), (-0.6 * long, 2 * thin), (-long, 2 * thin),
        ]  # fmt: skip
        return corners, 0.0
    count = {"nut": 6, "washer": 40, "gear": 48}[kind]
    teeth = [radius * (0.8 if kind == "gear" and i % 4 > 1 else 1.0) for i in range(count)]
    corners = [
        (r * math.cos(2 * math.pi * i / count), r * math.sin(2 * math.pi * i / count))
        for i, r in enumerate(teeth)
    ]
    return corners, radius * rng.uniform(0.35, 0.6)


def scene(index):
    """Returns a picture and the boxes [x, y, width, height] of its parts."""
    rng = np.random.default_rng(index)
    image, boxes = plate(rng), []
    for _ in range(rng.integers(3, 13)):
        radius = math.exp(rng.uniform(math.log(9), math.log(60)))
        x, y = rng.uniform(radius, SIZE[0] - radius), rng.uniform(radius, SIZE[1] - radius)
        kind = str(rng.choice(["bolt", "nut", "washer", "gear"]))
        angle = rng.uniform(0, 2 * math.pi)
        sine, cosine = math.sin(angle), math.cos(angle)
        corners, hole = outline(kind, radius, rng)
        corners = [(x + a * cosine - b * sine, y + a * sine + b * cosine) for a, b in corners]
        xs, ys = zip(*corners, strict=True)
        mask = Image.new("L", SIZE)
        draw = ImageDraw.Draw(mask)
        draw.polygon(corners, fill=255)
        draw.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
        # Hardly another grey than the plate; a soft shadow, and no streaks.
        shade = int(rng.integers(95, 185))
        shadow = mask.filter(ImageFilter.GaussianBlur(3)).point(lambda value: value * 0.4)
        image.paste((20, 20, 25), (2, 3), shadow)
        image.paste((shade, shade, shade + 4), (0, 0), mask)
        boxes.append([min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)])
    return image.filter(ImageFilter.GaussianBlur(0.6)), boxes


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=60, help="pictures (default: 60)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first (default: 0)")
    arguments = parser.parse_args()

    arguments.folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(arguments.first, arguments.first + arguments.count):
        image, boxes = scene(index)
        name = f"{index:03}.png"
        image.save(arguments.folder / name)
        width, height = image.size
        images.append({"id": index, "file_name": name, "width": width, "height": height})
        annotations += [
            {
                "id": len(annotations) + i,
                "image_id": index,
                "category_id": 1,
                "bbox": [round(value, 1) for value in box],
                "area": round(box[2] * box[3], 1),
                "iscrowd": 0,
            }
            for i, box in enumerate(boxes)
        ]
    categories = [{"id": 1, "name": "part"}]
    path = arguments.folder / "annotations.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    print(f"{len(images)} pictures with {len(annotations)} parts; {path}")


if __name__ == "__main__":
    main()
