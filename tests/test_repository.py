"""Promises about the repository itself: packaging, the README's numbers, the layout."""

import re
import tomllib
from pathlib import Path

from bench import readme

ROOT = Path(__file__).resolve().parents[1]


def test_every_package_is_packaged():
    """A forgotten subpackage works in a checkout and is missing from the wheel."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        declared = set(tomllib.load(file)["tool"]["setuptools"]["packages"])
    present = {
        ".".join(init.parent.relative_to(ROOT).parts)
        for init in (ROOT / "stream_rpn").rglob("__init__.py")
        if "kernels" not in init.parts
    } | {"stream_rpn.kernels"}
    assert declared == present


def test_the_kernels_are_reachable_under_the_package():
    link = ROOT / "stream_rpn" / "kernels"
    assert link.resolve() == ROOT / "kernels"
    assert (link / "__init__.py").is_file()


def test_the_readme_says_what_was_measured():
    text = readme.README.read_text()
    assert readme.rendered(text) == text


def test_the_readmes_pictures_show_what_was_measured():
    assert readme.stale_pictures() == []


def test_the_readmes_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text())
    assert links
    missing = [link for link in links if not (ROOT / link).exists()]
    assert missing == []


def test_the_map_shows_rooms_that_are_there():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = text[text.index("## The rooms") : text.index("## Where to add")]
    named = re.findall(r"`([\w/.]+(?:/|\.py))`", rooms)
    assert len(named) > 20
    places = [ROOT, ROOT / "stream_rpn"]
    missing = [name for name in named if not any((place / name).exists() for place in places)]
    assert [name for name in missing if name != "web/"] == []
    folders = {init.parent.name for init in (ROOT / "stream_rpn").glob("*/__init__.py")}
    unnamed = {name for name in folders if f"{name}/`" not in rooms}
    assert unnamed == set()


def test_modules_fit_a_reader():
    """Kernels may be longer: they are read line by line beside their reference."""
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for folder in ("stream_rpn", "bench")
        for path in (ROOT / folder).rglob("*.py")
        if "kernels" not in path.parts
    }
    assert len(lengths) > 50
    assert {name: length for name, length in lengths.items() if length > 450} == {}


def test_only_the_triton_files_import_triton_at_the_top():
    offenders = [
        path.name
        for folder in (ROOT / "kernels", ROOT / "stream_rpn")
        for path in folder.rglob("*.py")
        if not path.name.endswith("_triton.py")
        and re.search(r"^(import|from) triton", path.read_text(), re.MULTILINE)
    ]
    assert offenders == []
