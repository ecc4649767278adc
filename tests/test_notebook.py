"""The notebook among the examples, executed by a real kernel."""

import base64
import io
from pathlib import Path

import PIL.Image
import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("pandas")

ROOT = Path(__file__).resolve().parents[1]


def outputs(cell):
    return [output.get("data", {}) for output in cell.outputs]


def test_the_notebook_runs_and_shows_pictures_and_tables(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "examples" / "notebook.ipynb", as_version=4)
    shipped = [len(cell.get("outputs", ())) for cell in notebook.cells]
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert [len(cell.get("outputs", ())) for cell in notebook.cells] == shipped
    first, drawn, _, table, last = (cell for cell in notebook.cells if cell.cell_type == "code")
    sizes = []
    for cell in (first, drawn, last):
        (picture,) = [data["image/png"] for data in outputs(cell) if "image/png" in data]
        image = PIL.Image.open(io.BytesIO(base64.b64decode(picture)))
        sizes.append(image.size)
        assert len(image.convert("RGB").getcolors(maxcolors=1 << 20)) > 5
    assert sizes == [(320, 180)] * 3
    assert "Proposals(frame=6" in outputs(first)[0]["text/plain"]
    assert "text/html" in outputs(table)[-1]
