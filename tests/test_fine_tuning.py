"""The loop from a model to one's own: recipes, recall before and after, stopping, going on."""

import json
import os
import re
import stat
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stream_rpn.cli import main
from stream_rpn.commands import train as command
from stream_rpn.evaluation.coco import CocoDataset
from stream_rpn.frame import StreamRPNError
from stream_rpn.models.checkpoint import load_model, save_weights
from stream_rpn.training import loop
from stream_rpn.training.augment import augment
from stream_rpn.training.config import Augmentation, TrainConfig
from stream_rpn.training.history import History, draw_history, moving_mean, read_rows, smoothing
from stream_rpn.training.initialise import load_init
from stream_rpn.training.loop import train
from stream_rpn.training.recipe import read_recipe, write_recipe
from stream_rpn.training.targets import BACKGROUND, match_aligned
from stream_rpn.training.validation import Validation
from tests.synthetic_coco import png, shapes, write_dataset


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def without_curves(trained, monkeypatch):
    """Drawing takes longer than all the rest; `trained` has curves."""
    monkeypatch.setattr(loop, "draw_history", lambda folder: None)


@pytest.fixture
def config(tmp_path):
    annotations, images = write_dataset(tmp_path, size=64)
    return TrainConfig(
        annotations=str(annotations),
        images=(str(images),),
        output=str(tmp_path / "mine.safetensors"),
        model="classic",
        epochs=2,
        batch_size=3,
        augmentation=Augmentation(size=64),
        float32=True,
    )


class TestRecipe:
    def test_what_is_written_is_read_back(self, config, tmp_path):
        config = replace(
            config, freeze=("backbone.", 'a "quoted" name'), learning_rate=3e-5, hold_out=0.125
        )
        write_recipe(config, tmp_path / "mine.recipe.toml")
        recipe = read_recipe(tmp_path / "mine.recipe.toml")
        augmentation = Augmentation(**recipe.augmentation)
        again = TrainConfig(**recipe.config, augmentation=augmentation, output=config.output)
        assert again == config
        tomllib.loads((tmp_path / "mine.recipe.toml").read_text())

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("epochs = 3\nseed = \n", r"r\.toml:2: this is not TOML"),
            ("epochs = [1,\n", r"r\.toml:2: this is not TOML"),
            ("seed = 1\nepoch = 3\n", r"r\.toml:2: there is no option 'epoch'.*mean 'epochs'"),
            ("size = 64\n", r"r\.toml:1: .*'size'.*under \[augmentation\]"),
            ("output = 'x'\n", r"r\.toml:1: 'output' is given on the command line"),
            ("\nepochs = 1.5\n", r"r\.toml:2: epochs must be a whole number, got 1\.5"),
            ("epochs = true\n", r"r\.toml:1: epochs must be a whole number, got True"),
            ("images = 'a'\n", r"r\.toml:1: images must be a list of strings"),
            ("[augmentation]\n\nscale = [1]\n", r"r\.toml:3: scale must be a list of two numbers"),
            ("augmentation = 3\n", r"r\.toml:1: augmentation must be a table"),
            ("seed = 1\nepochs = 0\n", r"r\.toml:2: epochs must be at least 1, got 0"),
            ("[augmentation]\nflip = 7\n", r"r\.toml:2: flip must be between 0 and 1, got 7"),
        ],
    )
    def test_what_is_wrong_is_said_with_file_and_line(self, tmp_path, capsys, text, says):
        (tmp_path / "r.toml").write_text(text)
        options = ["--annotations", "a.json", "--images", str(tmp_path)]
        options += ["--config", str(tmp_path / "r.toml"), "-o", str(tmp_path / "m.safetensors")]
        assert main(["train", *(options if "images" not in text else options[4:])]) == 2
        error = capsys.readouterr().err
        assert re.search(says, error)
        assert error.count("\n") == 1

    def test_a_byte_order_mark_in_front_is_none_of_its_text(self, tmp_path):
        (tmp_path / "r.toml").write_text("\ufeffseed = 7\n", encoding="utf-8")
        assert read_recipe(tmp_path / "r.toml").config == {"seed": 7}

    def test_an_unreadable_recipe_is_named(self, tmp_path):
        with pytest.raises(StreamRPNError, match=r"'.*no\.toml' cannot be read \(No such file"):
            read_recipe(tmp_path / "no.toml")
        (tmp_path / "latin.toml").write_bytes(b"init = '\xe9'")
        with pytest.raises(StreamRPNError, match="not UTF-8"):
            read_recipe(tmp_path / "latin.toml")


def test_every_option_says_its_default(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out.partition("\nrecipe:")[2].partition("\n  --resume")[0]
    options = re.split(r"\n  (?=--)", text)[1:]
    assert len(options) > 30
    assert [option for option in options if "default" not in option] == []
    assert "upper bound (default: 40)" in " ".join(text.split())


class TestImages:
    def test_names_match_as_annotation_tools_write_them(self, tmp_path):
        annotations, images = write_dataset(tmp_path, count=4)
        (images / "deep").mkdir()
        (images / "001.png").rename(images / "deep" / "001.png")
        data = json.loads(annotations.read_text())
        for record, name in zip(
            data["images"],
            ("train2017/000.png", "001.png", "images\\002.png", "./003.png"),
            strict=True,
        ):
            record["file_name"] = name
        annotations.write_text(json.dumps(data))
        dataset = CocoDataset(annotations, [images])
        for index in range(4):
            assert np.array_equal(dataset[index].image, shapes(index)[0])

    def test_every_bad_image_is_told_before_the_first_step(self, config):
        folder = Path(config.images[0])
        (folder / "002.png").unlink()
        (folder / "004.png").write_bytes(png(shapes(4, 64)[0])[:60])
        (folder / "005.png").write_bytes(png(shapes(5, 32)[0]))
        rows = []
        with pytest.raises(StreamRPNError) as caught:
            train(config, progress=rows.append)
        assert str(caught.value).startswith("3 of 8 images cannot be used: ")
        for what in ("002.png: not found in", "004.png ", "005.png: the image is 32x32"):
            assert what in str(caught.value)
        assert rows[-1] == {"checked": 8, "of": 8}
        assert not config.folder.exists()

    def test_held_out_are_some_of_those_with_objects(self, config):
        path = Path(config.annotations)
        data = json.loads(path.read_text())
        empty = {record["id"] for record in data["images"][:3]}
        data["annotations"] = [a for a in data["annotations"] if a["image_id"] not in empty]
        path.write_text(json.dumps(data))
        rest, held_out = CocoDataset(path, config.images).split(0.4, seed=0)
        assert len(held_out) == 2
        assert not empty & held_out.ground_truth().keys()
        assert len(rest) == 6
        assert not rest.ground_truth().keys() & held_out.ground_truth().keys()
        assert held_out[0].image_id in held_out.ground_truth()

    def test_of_one_image_with_objects_none_is_held_out(self, config):
        dataset = CocoDataset(config.annotations, config.images)
        rest, held_out = dataset._subset([3]).split(0.2, seed=0)
        assert (len(rest), len(held_out)) == (1, 0)

    def test_training_sees_objects_as_large_as_they_are_found(self, tmp_path):
        seen = []
        for size in (64, 256):
            (tmp_path / str(size)).mkdir()
            annotations, images = write_dataset(tmp_path / str(size), count=1, size=size)
            settings = Augmentation(size=64, mosaic=0, scale=(1, 1), flip=0)
            sample = augment(
                CocoDataset(annotations, [images]), 0, settings, np.random.default_rng(0)
            )
            seen.append(sample.boxes)
        assert np.abs(seen[0] - seen[1]).max() <= 1


class TestAlignedMatch:
    ANCHORS = torch.tensor([[0.0, 0, 10, 10], [4, 4, 14, 14], [40, 40, 50, 50], [60, 60, 70, 70]])

    def match(self, boxes, scores, gt_boxes):
        return match_aligned(
            self.ANCHORS, torch.tensor(boxes), torch.tensor(scores), torch.tensor(gt_boxes)
        ).tolist()

    def test_the_anchor_that_sees_the_object_best_is_positive_whatever_its_own_shape(self):
        # Both centres lie in the object; what the first one makes of it fits hardly.
        boxes = [[0.0, 0, 4, 4], [0, 0, 20, 20], [0, 0, 20, 20], [60, 60, 70, 70]]
        assert self.match(boxes, [0.9, 0.5, 0.9, 0.1], [[0.0, 0, 20, 20]]) == [-1, 0, -1, -1]

    def test_as_many_are_positive_as_fit(self):
        boxes = [[0.0, 0, 20, 20], [0, 0, 20, 20], [0, 0, 20, 20], [60, 60, 70, 70]]
        assert self.match(boxes, [0.9, 0.5, 0.9, 0.1], [[0.0, 0, 20, 20]]) == [0, 0, -1, -1]

    def test_an_object_that_no_centre_lies_in_has_the_nearest_anchor(self):
        boxes = [[0.0, 0, 4, 4]] * 4
        assert self.match(boxes, [0.1] * 4, [[52.0, 52, 54, 54]]) == [-1, -1, 0, -1]

    def test_an_anchor_claimed_twice_takes_the_object_it_fits_better(self):
        boxes = [[0.0, 0, 9, 9]] * 4
        objects = [[0.0, 0, 30, 30], [0.0, 0, 9, 9]]
        assert self.match(boxes, [0.9, 0.1, 0.1, 0.1], objects)[0] == 1

    def test_an_image_without_objects_is_all_background(self):
        match = match_aligned(self.ANCHORS, self.ANCHORS, torch.ones(4), torch.zeros(0, 4))
        assert (match == BACKGROUND).all()


class TestInit:
    def test_a_name_gives_the_weights_that_ship(self, tmp_path):
        model = load_model("tiny", "random", fold=False)
        shipped = load_model("tiny", fold=False).state_dict()
        changed = load_init(model, "tiny")
        assert changed == {name for name, _ in model.named_parameters()}
        assert all(torch.equal(t, shipped[name]) for name, t in model.state_dict().items())

    def test_random_and_models_without_weights_leave_all_as_it_is(self):
        model = load_model("tiny", "random", fold=False)
        assert load_init(model, "random") == load_init(model, "resnet50_fpn_detectron2") == set()

    def test_an_unknown_name_is_told_with_those_that_are_known(self):
        model = load_model("tiny", "random", fold=False)
        with pytest.raises(StreamRPNError, match=r"no checkpoint file 'tinny'.*known are .*tiny"):
            load_init(model, "tinny")


class Scripted:
    """Stands in for what is measured: scores, one after another."""

    def __init__(self, monkeypatch, scores):
        self.models = []
        self.left = list(scores)
        monkeypatch.setattr(Validation, "measure", self.measure)

    def measure(self, model, *, everything, progress):
        score = self.left.pop(0)
        self.models.append(model.head.cls_logits.weight.detach().clone())
        numbers = ("AR@10", "AR@100", "AR@1000", "R50@100", "R50@300", "R50@1000")
        return {"images": 1, "objects": 1, **dict.fromkeys(numbers, score)}, score


class TestBest:
    def test_the_weights_that_found_most_are_written(self, config, monkeypatch):
        scripted = Scripted(monkeypatch, [0.3, 0.5, 0.4, 0.2])
        trained = train(replace(config, epochs=3, val_every=1))
        assert (trained.best_step, trained.step, trained.ended) == (2, 6, "whole")
        assert (trained.before["AR@100"], trained.after["AR@100"]) == (0.3, 0.5)
        written = load_model(config.output, fold=False).head.cls_logits.weight
        assert torch.equal(written, scripted.models[1])
        assert not torch.equal(written, scripted.models[2])

    def test_a_run_ends_when_nothing_has_been_better_for_long_enough(self, config, monkeypatch):
        Scripted(monkeypatch, [0.3, 0.5, 0.4, 0.4, 0.6, 0.7, 0.8])
        config = replace(config, epochs=8, val_every=1, patience=2)
        trained = train(config)
        assert (trained.best_step, trained.step, trained.ended) == (2, 6, "patience")
        longer = train(replace(config, epochs=6, patience=3), resume=True)
        assert (longer.best_step, longer.step, longer.ended) == (12, 12, "whole")
        assert longer.before["AR@100"] == 0.3

    def test_training_that_finds_less_leaves_the_model_as_it_was(self, config, monkeypatch):
        scripted = Scripted(monkeypatch, [0.3, 0.1])
        trained = train(replace(config, epochs=1))
        assert trained.best_step == 0
        written = load_model(config.output, fold=False).head.cls_logits.weight
        assert torch.equal(written, scripted.models[0])


class TestHistory:
    def test_short_runs_have_curves(self, tmp_path, monkeypatch):
        from matplotlib.axes import Axes

        drawn = []
        plot = Axes.plot
        monkeypatch.setattr(
            Axes, "plot", lambda self, *a, **k: drawn.append((a, k)) or plot(self, *a, **k)
        )
        history = History(tmp_path, None)
        for step in range(1, 46):
            row = {"step": step, "epoch": step / 10, "objectness_loss": 1.0, "box_loss": step}
            history.write(row)
        history.close()
        draw_history(tmp_path)
        lines = {kwargs["label"]: arguments for arguments, kwargs in drawn}
        x, y, style = lines["box_loss"]
        assert len(x) == len(y) == 42
        assert y[0] == pytest.approx(2.5)
        assert "." in style
        assert (tmp_path / "curves.png").is_file()

    def test_the_mean_is_over_a_tenth_of_the_run(self):
        assert [smoothing(n) for n in (0, 1, 45, 500, 10**6)] == [1, 1, 4, 50, 50]
        assert moving_mean([1.0, 2, 3, 4], 2).tolist() == [1.5, 2.5, 3.5]
        assert moving_mean([], 3).tolist() == []

    def test_a_run_that_goes_on_writes_what_came_after_its_checkpoint_again(self, tmp_path):
        history = History(tmp_path, None)
        for step in (1, 2, 3):
            history.write({"step": step})
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 4')
        History(tmp_path, 2).write({"step": 3, "again": True})
        assert read_rows(tmp_path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]

    @pytest.mark.parametrize(
        "text", ["{\n", "[1]\n", '{"epoch": 1}\n', '{"step": "1"}\n', "\xff\n"]
    )
    def test_metrics_that_no_run_wrote_are_refused(self, tmp_path, text):
        (tmp_path / "metrics.jsonl").write_bytes(text.encode("latin-1"))
        with pytest.raises(StreamRPNError, match=r"metrics\.jsonl' is not what a run wrote"):
            History(tmp_path, 2)
        assert (tmp_path / "metrics.jsonl").read_bytes() == text.encode("latin-1")

    def test_tensorboard_gets_losses_and_recall_where_it_is_installed(self, tmp_path):
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        history = History(tmp_path, None)
        history.write({"step": 3, "epoch": 0.1, "box_loss": 0.5})
        history.write({"step": 4, "epoch": 0.2, "AR@100": 0.25})
        history.close()
        events = EventAccumulator(str(tmp_path))
        events.Reload()
        (loss,) = events.Scalars("training/box_loss")
        assert (loss.step, loss.value) == (3, 0.5)
        assert events.Scalars("recall/AR@100")[0].value == 0.25


def test_weights_may_be_read_by_everybody_who_may_read_files(tmp_path):
    before = os.umask(0o022)
    try:
        save_weights(load_model("classic", "random"), tmp_path / "m.safetensors", model="classic")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "m.safetensors").stat().st_mode) == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A data set, and the options of a run on it that has ended."""
    folder = tmp_path_factory.mktemp("trained")
    annotations, images = write_dataset(folder, size=64)
    output = str(folder / "mine.safetensors")
    options = ["--annotations", str(annotations), "--images", str(images), "--model", "classic"]
    options += [
        "--epochs",
        "2",
        "--val-every",
        "1",
        "--size",
        "64",
        "--batch-size",
        "3",
        "--float32",
    ]
    assert main(["train", *options, "-o", output, "--quiet"]) == 0
    return folder, output, options


class TestCommand:
    def test_recall_is_said_before_and_after_and_everything_lies_beside_the_weights(
        self, trained, capsys
    ):
        folder, output, _ = trained
        again = str(folder / "again.safetensors")
        assert main(["train", "--config", str(folder / "mine.recipe.toml"), "-o", again]) == 0
        error = capsys.readouterr().err
        assert "6 images to train on, 2 held out to measure recall on" in error
        assert re.search(r"(\d+) of \1 parameters start from classic", error)
        for when in ("at the start:", "epoch 1.0:", "epoch 2.0:", "before:", "after:"):
            assert re.search(rf"{when} +AR@10 \d\.\d{{3}}  AR@100 \d\.\d{{3}}", error), when
        assert "checking images: " in error
        assert "again.recipe.toml" in error
        for name in ("metrics.jsonl", "curves.png", "last.pt"):
            assert (folder / "mine.training" / name).is_file()
        # The same recipe makes the same model.
        one, other = (load_model(path).state_dict() for path in (output, again))
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_a_run_that_has_ended_can_be_made_longer(self, trained, capsys):
        folder, _, _ = trained
        copy = folder / "longer.safetensors"
        assert main(["train", "--config", str(folder / "mine.recipe.toml"), "-o", str(copy)]) == 0
        assert main(["train", "-o", str(copy), "--resume", "--epochs", "3"]) == 0
        rows = read_rows(folder / "longer.training")
        assert [row["step"] for row in rows if "box_loss" in row] == [1, 2, 3, 4, 5, 6]
        assert "epochs = 3" in (folder / "longer.recipe.toml").read_text()
        capsys.readouterr()
        assert main(["train", "-o", str(copy), "--resume", "--seed", "9"]) == 2
        assert "had another seed" in capsys.readouterr().err

    def test_ctrl_c_says_where_it_stopped_and_the_run_goes_on(
        self, trained, tmp_path, capsys, monkeypatch
    ):
        folder, _, _ = trained
        output = str(tmp_path / "stopped.safetensors")
        recipe = ["train", "--config", str(folder / "mine.recipe.toml"), "-o", output]
        asked = iter([False] * (8 + 3))

        def came(signals):
            if next(asked, True):
                signals.number = 2
            return signals.number is not None

        monkeypatch.setattr(command.Signals, "came", came)
        assert main(recipe) == 130
        error = capsys.readouterr().err
        assert f"stopped at step 3 of 4; `stream-rpn train -o {output} --resume` goes on" in error
        assert load_model(output).name == "classic"
        monkeypatch.undo()
        assert main(["train", "-o", output, "--resume", "--quiet"]) == 0
        steps = [row["step"] for row in read_rows(tmp_path / "stopped.training")]
        assert max(steps) == 4

    def test_an_earlier_run_is_not_lost_by_mistake(self, trained, tmp_path, capsys):
        _, output, options = trained
        assert main(["train", *options, "-o", output]) == 2
        assert "--overwrite replaces it, --resume goes on" in capsys.readouterr().err
        (tmp_path / "m.training").mkdir()
        (tmp_path / "m.training" / "last.pt").touch()
        assert main(["train", *options, "-o", str(tmp_path / "m.safetensors")]) == 2
        assert "a run that did not end; --resume goes on" in capsys.readouterr().err
        assert main(["train", *options, "-o", str(tmp_path / "m.safetensors"), "--resume"]) == 2
        assert re.search(r"last\.pt' cannot be read .*--overwrite", capsys.readouterr().err)

    def test_a_recipe_of_ones_own_is_not_replaced(self, tmp_path, capsys):
        recipe = tmp_path / "m.recipe.toml"
        recipe.write_text("seed = 7  # mine\n")
        options = [
            "--annotations",
            "a.json",
            "--images",
            "i",
            "-o",
            str(tmp_path / "m.safetensors"),
        ]
        assert main(["train", *options]) == 2
        assert "m.recipe.toml' exists, where the recipe of this run" in capsys.readouterr().err
        assert recipe.read_text() == "seed = 7  # mine\n"

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--images", "x"], "--annotations is missing"),
            (["--annotations", "x.json"], "--images is missing"),
            (["--annotations", "x.json", "--images", "x", "--hold-out", "2"], "--hold-out must be"),
            (["--resume", "--annotations", "x.json"], "--images is missing"),
        ],
    )
    def test_what_is_missing_is_one_sentence(self, tmp_path, capsys, options, says):
        assert main(["train", *options, "-o", str(tmp_path / "m.safetensors")]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
