"""COCO files as the tools of others open them."""

import importlib.util
import json
import sys
import types

import numpy as np
import pytest

from tests.interop.results import RECORDS, write


@pytest.fixture(autouse=True)
def _written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("x.coco.json", RECORDS)
    write("x.coco-results.json", RECORDS)


def xywh(record):
    return np.column_stack([record.boxes[:, :2], record.boxes[:, 2:] - record.boxes[:, :2]])


def test_pycocotools_reads_the_dataset_and_the_results():
    coco = pytest.importorskip("pycocotools.coco").COCO("x.coco.json")
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == [
        record.name for record in RECORDS
    ]
    for record in RECORDS:
        found = coco.loadAnns(coco.getAnnIds([record.frame]))
        boxes = np.array([item["bbox"] for item in found]).reshape(-1, 4)
        np.testing.assert_allclose(boxes, xywh(record))
    assert len(coco.loadRes("x.coco-results.json").anns) == 3


def test_torchvision_reads_the_dataset(tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    if importlib.util.find_spec("pycocotools") is None:
        # Where torch is, pycocotools' other implementation is, too.
        stand_in = pytest.importorskip("faster_coco_eval")
        monkeypatch.setitem(sys.modules, "pycocotools", stand_in)
        coco = types.SimpleNamespace(COCO=stand_in.COCO)
        monkeypatch.setitem(sys.modules, "pycocotools.coco", coco)
    from PIL import Image
    from torchvision.datasets import CocoDetection

    for record in RECORDS:
        Image.new("RGB", (96, 64)).save(tmp_path / record.name)
    dataset = CocoDetection(str(tmp_path), "x.coco.json")
    assert [len(objects) for _, objects in dataset] == [2, 0, 1]


def test_supervision_reads_the_dataset(tmp_path):
    supervision = pytest.importorskip("supervision")
    from PIL import Image

    for record in RECORDS:
        Image.new("RGB", (96, 64)).save(tmp_path / record.name)
    dataset = supervision.DetectionDataset.from_coco(str(tmp_path), "x.coco.json")
    assert dataset.classes == ["object"]
    found = {path.rpartition("/")[2]: boxes.xyxy for path, _, boxes in dataset}
    for record in RECORDS:
        np.testing.assert_allclose(found[record.name].reshape(-1, 4), record.boxes, atol=0.01)


def test_datumaro_which_is_in_cvat_imports_the_dataset(tmp_path):
    datumaro = pytest.importorskip("datumaro")
    for folder in ("annotations", "images"):
        (tmp_path / "cvat" / folder).mkdir(parents=True)
    data = (tmp_path / "x.coco.json").read_bytes()
    (tmp_path / "cvat" / "annotations" / "instances_default.json").write_bytes(data)
    dataset = datumaro.Dataset.import_from("cvat", "coco_instances")
    labels = dataset.categories()[datumaro.AnnotationType.label]
    found = {item.id: item.annotations for item in dataset}
    assert set(found) == {"a", "b", "c"}
    for record in RECORDS:
        boxes = found[record.name[0]]
        assert {labels[box.label].name for box in boxes} <= {"object"}
        assert sorted(map(tuple, xywh(record))) == sorted(tuple(box.get_bbox()) for box in boxes)


def test_fiftyone_finds_the_pictures_of_the_boxes():
    coco = pytest.importorskip("fiftyone.utils.coco")
    _, classes, _, images, annotations = coco.load_coco_detection_annotations("x.coco.json")
    assert {image["file_name"] for image in images.values()} == {r.name for r in RECORDS}
    assert "object" in json.dumps(classes)
    assert {number: len(boxes) for number, boxes in annotations.items()} == {0: 2, 2: 1}
    boxes = annotations[2][0].to_detection((96, 64), classes_map={1: "object"})
    assert boxes.label == "object"
