"""Real odd files, and small ones that were once taken wrongly, all by one command, as README says.

Frames in = results + dropped for each; what is damaged, cut off or nothing is told in a sentence,
and makes the exit code 3 where others have results.
"""

import json
import shutil
from pathlib import Path

import pytest

from stream_rpn.cli import main

# Frames, drops and the sentence of each file, "" for none.
ODD = {
    "av1_video.mkv": (125, {}, ""),
    "corrupted.mp4": (49, {"damaged packet": 1}, "is damaged (1 × damaged packet, 1 × frame with"),
    "h264_10bits.mp4": (30, {}, ""),
    "h265_video.mp4": (10, {}, ""),
    "nasa_13013.mp4": (390, {}, ""),
    "pets-322x242.mp4": (20, {}, ""),
    "pets-truncated-faststart.mp4": (
        24,
        {"damaged packet": 1, "missing packet": 15},
        "is damaged (1 × damaged packet, 15 × missing packet); every frame that decodes was used",
    ),
    "pets-truncated-no-moov.mp4": (0, {}, "is cut off: its index (moov) is missing"),
    "pets-vfr.mkv": (40, {}, ""),
    "rot_video_0.mov": (3, {}, ""),
    "rot_video_90.mov": (3, {}, ""),
    "sine_mono_s16.wav": (0, {}, "has no video stream (audio only)"),
}
CASES = {
    "01_avi_bframe_timestamps/h264b.avi": (8, {}, ""),
    "02_clock_goes_back/cat_same.ts": (16, {}, ""),
    "03_mirrored/mir_hflip.mp4": (6, {}, ""),
    "12_heic_folder/a.heic": (1, {}, ""),
    "13_raw_h264_fps/raw.h264": (8, {}, ""),
    "14_truncated_jpeg/cut66.jpg": (0, {}, "is cut off: the end of the JPEG data is missing"),
    "15_jpeg_tiff_black/jpeg.tif": (1, {}, ""),
    "16_tga/a.tga": (1, {}, ""),
    "17_dash_name/-clip.mp4": (None, {}, ""),
}


@pytest.fixture(scope="module")
def run(shared_data, tmp_path_factory):
    """The command over all of them at once: its summaries by name, its sentences, its results."""
    folder = tmp_path_factory.mktemp("odd")
    places = [(shared_data / "video/odd", ODD), (shared_data.parent / "cases", CASES)]
    for place, names in places:
        for name in names:
            if (place / name).is_file():
                shutil.copy(place / name, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        names = sorted(path.name for path in folder.iterdir())
        options = ["--size", "64", "--quiet", "-o", "{stem}.jsonl", "--json-summary", "s.json"]
        code = main([*options, "--", *names])
    summary = json.loads((folder / "s.json").read_text())
    return folder, code, summary


@pytest.mark.parametrize("name", [*ODD, *CASES])
def test_the_sums_and_the_sentence(run, name):
    frames, drops, sentence = {**ODD, **CASES}[name]
    folder, code, summary = run
    name = Path(name).name
    if not (folder / name).exists():
        pytest.skip(f"there is no {name}")
    assert code == 3
    told = [failure for failure in summary["failures"] if name in failure]
    assert len(told) == bool(sentence)
    assert sentence in "".join(told)
    mine = [source for source in summary["sources"] if Path(source["source"]).name == name]
    if frames == 0:
        assert mine == []
        return
    (mine,) = mine
    assert mine["frames_in"] == mine["frames"] + sum(mine["drops"].values())
    assert mine["drops"] == drops
    assert frames in (None, mine["frames"])
    lines = (folder / f"{Path(name).stem}.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["end"]["frames_in"] == mine["frames_in"]
    assert len(lines) - 2 == mine["frames"]
