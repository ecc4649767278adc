"""A small annotated data set of coloured rectangles."""

import io
import json
import tarfile

import numpy as np
from PIL import Image


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def shapes(index, size=96, grey=60):
    """An image with one to three coloured rectangles, and their boxes."""
    rng = np.random.default_rng(index)
    image = np.full((size, size, 3), grey, dtype=np.uint8)
    boxes = []
    for channel in range(1 + index % 3):
        left = round(size * (0.04 + 0.31 * channel))
        top, width, height = (
            round(size * rng.uniform(low, high))
            for low, high in ((0, 0.5), (0.15, 0.27), (0.15, 0.4))
        )
        image[top : top + height, left : left + width] = 0
        image[top : top + height, left : left + width, channel] = 255
        boxes.append([left, top, width, height])
    return image, boxes


def write_dataset(folder, count=8, size=96, tar=False):
    records, annotations, files = [], [], {}
    for index in range(count):
        image, boxes = shapes(index, size)
        name = f"{index:03}.png"
        files[name] = png(image)
        records.append({"id": 100 + index, "file_name": name, "width": size, "height": size})
        annotations += [
            {"id": len(annotations) + k, "image_id": 100 + index, "bbox": box, "iscrowd": 0}
            for k, box in enumerate(boxes)
        ]
    if tar:
        with tarfile.open(folder / "images.tar", "w") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(f"./train/{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    else:
        (folder / "images").mkdir()
        for name, data in files.items():
            (folder / "images" / name).write_bytes(data)
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": records, "annotations": annotations}))
    return path, folder / ("images.tar" if tar else "images")
