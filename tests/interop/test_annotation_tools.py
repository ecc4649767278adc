"""Results as annotation tools import them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from stream_rpn.sinks.labelstudio import LABEL_CONFIG
from tests.interop.results import RECORDS, write


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_supervision_reads_yolo_labels():
    supervision = pytest.importorskip("supervision")
    from PIL import Image

    write("yolo:set/", RECORDS)
    Path("set/images").mkdir()
    for record in RECORDS:
        Image.new("RGB", (96, 64)).save(f"set/images/{record.name}")
    dataset = supervision.DetectionDataset.from_yolo("set/images", "set/labels", "set/data.yaml")
    assert dataset.classes == ["object"]
    found = {Path(path).name: boxes.xyxy for path, _, boxes in dataset}
    for record in RECORDS:
        np.testing.assert_allclose(found[record.name].reshape(-1, 4), record.boxes, atol=0.01)


def test_label_studio_accepts_the_tasks():
    interface = pytest.importorskip("label_studio_sdk.label_interface").LabelInterface(LABEL_CONFIG)
    write("x.labelstudio.json", RECORDS)
    tasks = json.loads(Path("x.labelstudio.json").read_text())
    assert [len(task["predictions"][0]["result"]) for task in tasks] == [2, 0, 1]
    for task in tasks:
        # Of a task with predictions the SDK's own check fails: it calls itself without them.
        assert interface.validate_task({"data": task["data"]})
        assert interface.validate_prediction(task["predictions"][0])
    wrong = json.loads(json.dumps(tasks[0]["predictions"][0]))
    wrong["result"][0]["value"]["rectanglelabels"] = ["unknown"]
    assert not interface.validate_prediction(wrong)


def test_datumaro_which_is_in_cvat_imports_mot_with_its_class():
    datumaro = pytest.importorskip("datumaro")
    write("x.mot.txt", RECORDS)
    Path("cvat/gt").mkdir(parents=True)
    shutil.copy("x.mot.txt", "cvat/gt/gt.txt")
    Path("cvat/gt/labels.txt").write_text("object\n")
    dataset = datumaro.Dataset.import_from("cvat", "mot_seq")
    labels = dataset.categories()[datumaro.AnnotationType.label]
    boxes = {item.id: item.annotations for item in dataset}
    assert {len(found) for found in boxes.values()} == {1, 2}
    assert {labels[box.label].name for found in boxes.values() for box in found} == {"object"}


def test_pandas_reads_csv():
    pandas = pytest.importorskip("pandas")
    write("x.csv", RECORDS)
    table = pandas.read_csv("x.csv")
    boxes = table[["x1", "y1", "x2", "y2"]].to_numpy()
    np.testing.assert_allclose(boxes, np.concatenate([record.boxes for record in RECORDS]))
    assert table.name.tolist() == ["a.jpg", "a.jpg", "c.jpg"]
