"""`explain`: its boxes are those that are written, and each of its answers is true."""

import asyncio
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import stream_rpn
from bench import classic
from stream_rpn import api, cli
from stream_rpn.explanation import answers, charts, figures, page, receptive, terminal, truth
from stream_rpn.explanation.facts import explain_frame, find_frame
from stream_rpn.explanation.ledger import Anchors, Fate, ledger
from stream_rpn.explanation.look import copy_on_cpu, look
from stream_rpn.explanation.shift import shifted
from stream_rpn.frame import StreamRPNError
from stream_rpn.kernels import boxes as box_ops
from stream_rpn.kernels.generate import generate_proposals
from stream_rpn.kernels.proposals import HeadOutputs
from stream_rpn.timing import StageTimes
from tests.agreement import Limits, Selection, assert_same_selection
from tests.browser import Browser
from tests.synthetic_coco import write_dataset

SIZE = (96, 128)
# Every obstacle there is occurs: what is not selected, filtered, suppressed and beyond the top.
LIMITS = {"pre_nms": 150, "nms": 0.4, "top": 20, "min_size": 6.0, "size": 64}


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 16, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    path = tmp_path_factory.mktemp("explain") / "picture.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def rpn():
    torch.manual_seed(0)
    model = api.load("tiny", "random", **LIMITS)
    # As it is made, all anchors score the same, and boxes are their anchors.
    for layer, spread in ((model.head.cls_logits, 0.03), (model.head.bbox_pred, 0.005)):
        torch.nn.init.normal_(layer.weight, std=spread)
    return copy_on_cpu(model)


@pytest.fixture(scope="module")
def seen(rpn, picture):
    return look(rpn, find_frame(str(picture), None, None, StageTimes()), StageTimes())


@pytest.fixture(scope="module")
def book(seen):
    return ledger(seen, Anchors.of(seen), seen.spec)


@pytest.fixture(scope="module")
def facts(rpn, picture, tmp_path_factory):
    annotations = tmp_path_factory.mktemp("gt") / "gt.json"
    write_coco(annotations, [[20, 20, 40, 30], [70, 40, 12, 12]], crowd=[0, 0, 30, 20])
    frame = find_frame(str(picture), None, None, StageTimes())
    return explain_frame(rpn, str(picture), frame, StageTimes(), gt=str(annotations))


def write_coco(path, boxes, crowd=None, name="picture.png"):
    height, width = SIZE
    rows = [{"id": i, "image_id": 1, "bbox": box, "iscrowd": 0} for i, box in enumerate(boxes)]
    if crowd:
        rows.append({"id": 99, "image_id": 1, "bbox": crowd, "iscrowd": 1})
    images = [{"id": 1, "file_name": name, "width": width, "height": height}]
    path.write_text(json.dumps({"images": images, "annotations": rows}))


def outcome(seen, spec, without=()):
    """Returns the (level, anchor) of the proposals, by the pipeline's own stage alone."""
    every = Anchors.of(seen)
    objectness = [level.clone() for level in seen.heads.objectness]
    for number in without:
        level = int(every.levels[number])
        per_cell = len(seen.heads.base_anchors[level])
        cell, a = divmod(number - every.starts[level], per_cell)
        objectness[level][0, a].view(-1)[cell] = -torch.inf
    heads = HeadOutputs(objectness, *seen.heads[1:])
    top = min(spec.post_nms_top_n, len(every.logits))
    kept = generate_proposals(heads, replace(spec, post_nms_top_n=top))
    count = int(kept.count)
    return {
        every.starts[level] + anchor
        for level, anchor in zip(
            kept.levels[0, :count].tolist(), kept.anchors[0, :count].tolist(), strict=True
        )
    }


class TestLedger:
    def test_it_has_the_pipelines_proposals_in_their_order(self, seen, book):
        numbers = book.proposed()
        assert np.array_equal(book.every.boxes[numbers].numpy(), seen.proposals.input_boxes)
        assert set(numbers.tolist()) == outcome(seen, seen.spec)

    def test_every_fate_occurs_here(self, book):
        fates = set(book.fates.tolist())
        assert fates >= {Fate.NOT_SELECTED, Fate.TOO_SMALL, Fate.SUPPRESSED, Fate.BEYOND_TOP,
                         Fate.PROPOSED}  # fmt: skip

    def test_who_suppresses_is_better_of_the_same_level_kept_and_overlaps(self, book):
        every = book.every
        gone = (book.fates == Fate.SUPPRESSED).nonzero()[:, 0]
        by = book.suppressors[gone]
        assert len(gone) > 10
        assert (by >= 0).all()
        assert (every.levels[by] == every.levels[gone]).all()
        assert (every.logits[by] >= every.logits[gone]).all()
        assert (book.places[by] > 0).all()
        overlap = torch.stack([
            box_ops.iou(every.boxes[a][None], every.boxes[b][None])[0, 0]
            for a, b in zip(gone.tolist(), by.tolist(), strict=True)
        ])  # fmt: skip
        torch.testing.assert_close(overlap, book.overlaps[gone])
        assert (overlap > book.spec.nms_thresh).all()


def some_of_each_fate(book, count=4):
    for fate in set(book.fates.tolist()) - {int(Fate.PROPOSED)}:
        numbers = (book.fates == fate).nonzero()[:, 0]
        yield from numbers[:: max(1, len(numbers) // count)][:count].tolist()


class TestAnswers:
    def test_with_all_obstacles_gone_the_box_comes_out_and_with_one_left_it_does_not(
        self, seen, book
    ):
        kinds = set()
        for number in some_of_each_fate(book):
            answer = answers.why_not_anchors(seen, book, (0.0, 0.0), [number])
            for left in [None, *range(len(answer.obstacles))]:
                spec, removed = seen.spec, []
                for index, obstacle in enumerate(answer.obstacles):
                    if index == left:
                        continue
                    removed += obstacle.suppressors
                    if not obstacle.suppressors:
                        spec = answers.apply(spec, obstacle.remedy)
                assert (number in outcome(seen, spec, removed)) == (left is None), answer
            kinds |= {obstacle.kind for obstacle in answer.obstacles}
        assert kinds == {"not selected", "too small", "suppressed", "beyond top"}

    def test_raising_the_threshold_as_told_lets_a_suppressed_box_pass(self, seen, book):
        gone = (book.fates == Fate.SUPPRESSED).nonzero()[:, 0]
        for number in gone[::10].tolist():
            [obstacle, *_] = answers.why_not_anchors(seen, book, (0.0, 0.0), [number]).obstacles
            if "nms" in obstacle.remedy:
                spec = answers.apply(seen.spec, {**obstacle.remedy, "top": 10_000})
                assert number in outcome(seen, spec)

    def test_a_box_of_low_score_is_told_the_score_that_lets_it_pass(self, seen):
        spec = replace(seen.spec, score_thresh=0.9, pre_nms_top_n=10_000, min_size=0.0)
        strict = ledger(seen, Anchors.of(seen), spec)
        low = (strict.fates == Fate.SCORED_LOW).nonzero()[:, 0]
        number = int(low[len(low) // 2])
        [obstacle, *_] = answers.why_not_anchors(seen, strict, (0.0, 0.0), [number]).obstacles
        assert obstacle.kind == "scored low"
        lenient = ledger(seen, strict.every, answers.apply(spec, obstacle.remedy))
        assert lenient.fate(number) is not Fate.SCORED_LOW

    def test_an_object_that_no_box_reaches_stays_missed_whatever_the_limits(self, seen, book):
        answer = answers.why_not_object(seen, book, (60.0, 50.0, 62.0, 90.0))
        assert answer.outcome in ("no anchor fits", "no box fits")
        assert 0 < answer.best_box_iou < answers.FOUND
        spec = answers.apply(seen.spec, {"pre_nms": 10_000, "nms": 1.0, "top": 10_000,
                                         "min_size": 0.0})  # fmt: skip
        boxes = book.every.boxes[sorted(outcome(seen, spec))]
        wanted = seen.to_input(torch.tensor([answer.target]))
        assert float(box_ops.iou(wanted, boxes).max()) == pytest.approx(answer.best_box_iou)

    def test_an_object_is_found_by_the_first_proposal_that_covers_it(self, seen, book):
        box = seen.proposals.boxes[3]
        answer = answers.why_not_object(seen, book, box.tolist())
        assert answer.outcome == "proposed"
        assert answer.place <= 4
        assert answer.contender_iou >= answers.FOUND

    def test_an_object_of_a_suppressed_box_has_that_box_as_its_contender(self, seen, book):
        missed = 0
        for number in (book.fates == Fate.SUPPRESSED).nonzero()[::6, 0].tolist():
            box = seen.to_frame(book.every.boxes[number][None])[0].tolist()
            answer = answers.why_not_object(seen, book, box)
            if answer.outcome == "proposed":
                continue
            missed += 1
            fits = box_ops.iou(seen.to_input(torch.tensor([box])), book.every.boxes)[0]
            best = book.every.logits[fits >= answers.FOUND].max()
            assert book.every.logits[answer.contender] == best
            assert book.fate(answer.contender) is not Fate.PROPOSED
        assert missed


class Gate(torch.nn.Module):
    """Scales a map by its average, as squeeze-and-excitation does."""

    def forward(self, x):
        return x * torch.nn.functional.adaptive_avg_pool2d(x, 1).sigmoid()


class TestReceptiveFields:
    def test_of_a_made_up_network_they_are_the_formulas(self):
        rpn = copy_on_cpu(api.load("classic", "random"))
        rpn.backbone = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, padding=1),
            torch.nn.MaxPool2d(2),
            torch.nn.Conv2d(4, 96, 3, padding=1),
            torch.nn.MaxPool2d(2),
        )
        # 3, +1, +2·2, +2 → 10; and the head's 3×3 at stride 4 adds 8.
        assert receptive.nominal(rpn) == ([10], [18])

    def test_pixels_outside_change_nothing_and_some_at_every_edge_do(self, rpn, seen):
        level, row, column = 0, 7, 9
        x1, y1, x2, y2 = receptive.fields(rpn, seen.images).box(level, row, column)
        height, width = seen.images.shape[-2:]
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height

        @torch.inference_mode()
        def logits(images):
            return rpn.head(list(rpn.features(images).values()))[0][level][0, :, row, column]

        noise = torch.randn(seen.images.shape, generator=torch.Generator().manual_seed(1))
        outside = seen.images + noise
        outside[..., y1:y2, x1:x2] = seen.images[..., y1:y2, x1:x2]
        torch.testing.assert_close(logits(outside), logits(seen.images), rtol=1e-5, atol=1e-6)

    def test_behind_a_global_average_everything_is_seen(self):
        rpn = copy_on_cpu(api.load("classic", "random"))
        rpn.backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 96, 3, stride=16), Gate())
        assert receptive.nominal(rpn) == ([None], [None])

    def test_the_gradient_lies_within_the_window(self, facts):
        for cell in facts.cells:
            x1, y1, x2, y2 = cell.window
            heat = cell.effective.heat.copy()
            assert heat.sum() == pytest.approx(1, abs=1e-3)
            assert cell.effective.half <= cell.effective.most
            heat[y1:y2, x1:x2] = 0
            assert heat.sum() == pytest.approx(0, abs=1e-5)


class TestFacts:
    def test_points_name_the_cells_whose_anchors_are_centred_nearest(self, facts):
        point = facts.points[-1]
        x, y = facts.look.to_input(torch.tensor([[*point.at, *point.at]]))[0, :2].tolist()
        for level, numbers in enumerate(point.numbers):
            anchors = facts.look.level_anchors(level)
            centres = (anchors[:, :2] + anchors[:, 2:]) / 2
            nearest = (centres - torch.tensor([x, y])).norm(dim=1).min()
            own = facts.every.anchors[numbers]
            distance = ((own[:, :2] + own[:, 2:]) / 2 - torch.tensor([x, y])).norm(dim=1)
            assert distance.max() <= nearest + 1e-3

    def test_the_dot_product_is_the_logit(self, facts):
        for cell in facts.cells:
            assert cell.dot is not None
            total = float(cell.dot.weights @ cell.dot.features) + cell.dot.bias + cell.dot.rest
            assert total == pytest.approx(float(facts.every.logits[cell.best]), rel=1e-3, abs=1e-3)

    @pytest.mark.parametrize("name", ["nanodet_m", "classic"])
    def test_the_dot_product_is_the_logit_of_other_heads(self, name, picture):
        frame = find_frame(str(picture), None, None, StageTimes())
        seen = look(copy_on_cpu(api.load(name, size=64)), frame, StageTimes())
        from stream_rpn.explanation.head import channels, dot_product

        every, layout = Anchors.of(seen), channels(seen)
        assert len(layout.objectness) == seen.heads.objectness[0].shape[1]
        assert len(layout.deltas) == seen.heads.deltas[0].shape[1]
        a = len(seen.heads.base_anchors[0]) - 1
        dot = dot_product(seen, 0, a, 2, 3)
        number = (2 * seen.heads.objectness[0].shape[3] + 3) * (a + 1) + a
        assert dot.total + dot.rest == pytest.approx(float(every.logits[number]), rel=1e-3)

    def test_another_k_gives_what_the_pipeline_gives_with_it(self, facts):
        for other in facts.other_k:
            found = outcome(facts.look, replace(facts.look.spec, pre_nms_top_n=other.k))
            assert len(found) == other.proposals
            assert len(found & outcome(facts.look, facts.look.spec)) == other.common

    def test_every_threshold_keeps_what_the_pipeline_keeps_with_it(self, facts):
        assert facts.look.spec.nms_thresh in [run.threshold for run in facts.suppressions]
        for run in facts.suppressions:
            found = outcome(facts.look, replace(facts.look.spec, nms_thresh=run.threshold))
            assert run.total == len(found)
            assert set(facts.candidates[run.kept].tolist()) <= found
            assert (run.suppressors[run.kept] == -1).all()
            assert (run.suppressors < np.arange(len(run.suppressors))).all()

    def test_labels_are_the_papers(self, facts):
        taught = facts.truth
        inside = ~(taught.labels == truth.CROSSING)
        height, width = facts.look.image_size
        anchors = facts.every.anchors.numpy()
        crossing = (anchors[:, :2] < 0).any(1) | (anchors[:, 2:] > [width, height]).any(1)
        assert np.array_equal(~inside, crossing)
        for index, number in enumerate(taught.best_anchors):
            assert taught.labels[number] == index
        assert set(taught.labels[taught.positives]) == {0, 1}
        assert (taught.labels[taught.negatives] == truth.targets.BACKGROUND).all()
        boxes = facts.look.to_input(torch.from_numpy(taught.objects))
        moved = box_ops.decode(
            torch.from_numpy(taught.wanted), facts.every.anchors[taught.positives]
        )
        torch.testing.assert_close(
            moved, boxes[taught.labels[taught.positives]], rtol=1e-4, atol=1e-3
        )
        assert all(np.isfinite(loss).all() for loss in taught.losses.values())

    def test_a_network_that_sees_no_border_moves_its_boxes_by_the_stride(self, facts):
        whole, half = facts.shifts
        assert (whole.pixels, half.pixels) == (whole.stride, whole.stride // 2)
        assert whole.expected == pytest.approx(whole.pixels * SIZE[1] / facts.look.image_size[1])
        assert len(whole.moved) == whole.found <= whole.compared

    def test_a_shift_by_nothing_moves_nothing(self, seen):
        still = shifted(seen, 0, 0)
        assert still.found == still.compared
        assert np.abs(still.moved).max() < 1e-3


class TestOutputs:
    def test_plain_data_is_json_and_has_the_proposals(self, facts):
        record = json.loads(json.dumps(facts.record(), allow_nan=False))
        np.testing.assert_allclose(record["proposals"]["boxes"], facts.proposals.boxes, atol=0.06)
        assert [level["anchors"] for level in record["levels"]] == facts.every.sizes
        assert len(record["truth"]["answers"]) == 2

    def test_the_page_stands_alone_and_holds_no_markup_of_others(self, facts):
        spoiled = replace(facts, source="</script><img src=x onerror=alert(1)>")
        html = page.render(spoiled)
        assert len(html) < 5e6
        assert "<img src=x" not in html
        assert "http://" not in html.replace("http://www.w3.org/", "")
        assert "https://" not in html
        assert html.count("</script>") == 3

    def test_figures_are_pictures(self, facts, monkeypatch):
        monkeypatch.setattr(figures, "DPI", 30)
        found = figures.pngs(facts)
        names = {name[3:-4] for name in found}
        assert names >= {"input", "cells", "anchors", "dot", "objectness", "follow", "logits",
                         "other-k", "nms", "truth", "regression", "shift", "cost"}  # fmt: skip
        assert all(data.startswith(b"\x89PNG") for data in found.values())

    def test_without_ground_truth_there_is_none_of_it(self, facts, monkeypatch):
        bare = replace(facts, truth=None)
        assert "regression" not in charts.draw_charts(bare)
        monkeypatch.setattr(charts, "draw_charts", lambda _: {})
        assert "--gt FILE" in page.render(bare)

    def test_the_terminals_page_says_the_same(self, facts, capsys):
        from stream_rpn.commands.tables import print_table

        print_table(terminal.page(facts))
        said = capsys.readouterr().out
        assert facts.truth.answers[0].sentence[:40] in said
        assert f"{len(facts.every.logits):,}" in said.replace(" ", "") or "p2" in said


class TestCommand:
    FAST = ("--model", "tiny", "--weights", "random", "--size", "64")

    def explain(self, *arguments):
        return cli.main(["explain", *map(str, arguments), *self.FAST])

    def test_the_boxes_are_those_that_are_written(self, picture, tmp_path, monkeypatch):
        monkeypatch.setattr(figures, "pngs", lambda _: {"01-input.png": b"a picture"})
        options = ("--model", "nanodet_m", "--size", "96", "--quiet")
        out = tmp_path / "facts"
        written = tmp_path / "written.jsonl"
        assert cli.main([str(picture), "-o", str(written), *options]) == 0
        assert cli.main(["explain", str(picture), "-o", f"{out}/", *options]) == 0
        record = json.loads((out / "facts.json").read_text())
        assert sorted(record["files"]) == sorted(p.name for p in out.glob("*.png"))
        [theirs] = stream_rpn.read(written)
        mine = record["proposals"]
        # The engine that writes rounds to bfloat16 where the processor has it.
        limits = Limits(boxes=1.5, scores=0.02, nms_thresh=0.7, top=300, floors=(0.0,),
                        min_size=1e-3)  # fmt: skip
        sides = [
            Selection(torch.tensor(boxes), torch.tensor(scores), torch.tensor(levels))
            for boxes, scores, levels in (
                (mine["boxes"], mine["scores"], mine["levels"]),
                (theirs.boxes.tolist(), theirs.scores.tolist(), theirs.levels.tolist()),
            )
        ]
        sides = [
            replace(side, anchors=torch.tensor(anchors))
            for side, anchors in zip(sides, (mine["anchors"], theirs.anchors.tolist()), strict=True)
        ]
        assert_same_selection(*sides, limits)

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (("--at", "500,20"), "the point 500,20 is outside the frame of 128x96 pixels"),
            (("--frame", "7"), "has no frame 7; its last one is number 0, counted from 0"),
            (("--time", "soon"), "'soon' is not a time"),
            (("-o", "report.pdf"), "neither a page nor a directory"),
            (("-o", "no/such/report.html"), "does not exist"),
            (("--gt", "missing.json"), "--gt missing.json: no such file"),
        ],
        ids=lambda value: value[0] if isinstance(value, tuple) else "",
    )
    def test_what_does_not_fit_is_one_sentence(
        self, arguments, sentence, picture, own_folder, capsys
    ):
        assert self.explain(picture, *arguments) == 2
        said = capsys.readouterr().err
        assert sentence in said
        assert said.count("\n") == 1

    def test_ground_truth_of_others_is_one_sentence(self, picture, own_folder, capsys, tmp_path):
        for name, boxes, sentence in (
            ("other.png", [[1, 1, 9, 9]], "has no image 'picture.png'"),
            ("picture.png", [], "has no object in frame 0"),
        ):
            write_coco(tmp_path / "gt.json", boxes, name=name)
            assert self.explain(picture, "--gt", tmp_path / "gt.json") == 2
            assert sentence in capsys.readouterr().err
        (tmp_path / "gt.txt").write_text("3,1,5,5,9,9,1\n")
        assert self.explain(picture, "--gt", tmp_path / "gt.txt") == 2
        assert "has nothing about frame 0" in capsys.readouterr().err

    def test_what_exists_is_not_replaced(self, picture, own_folder, capsys, tmp_path):
        (tmp_path / "report.html").write_text("mine")
        assert self.explain(picture, "-o", "report.html") == 2
        assert "--overwrite replaces it" in capsys.readouterr().err
        assert (tmp_path / "report.html").read_text() == "mine"

    def test_python_is_told_the_same_in_a_sentence(self, picture):
        for options in ({"frame": 1, "time": 1.0}, {"frame": -1}, {"at": (-1.0, 0.0)}):
            with pytest.raises(StreamRPNError):
                stream_rpn.explain(picture, model="tiny", weights="random", size=64, **options)

    def test_annotations_find_a_picture_by_its_name(self, tmp_path):
        annotations, folder = write_dataset(tmp_path, count=2)
        source = folder / "001.png"
        facts = stream_rpn.explain(
            source, model="tiny", weights="random", size=64, gt=annotations, top=20
        )
        assert len(facts.truth.objects) == 2


class TestInABrowser:
    async def _look(self, folder, html):
        (folder / "report.html").write_text(html, encoding="utf-8")
        async with Browser(folder, size=(390, 800)) as browser:
            await browser.open((folder / "report.html").as_uri())
            await browser.wait_for("document.documentElement.dataset.ready == 'yes'")
            assert await browser.run("document.documentElement.scrollWidth <= innerWidth")

            # Another threshold keeps another number of boxes.
            await browser.run("slider.value = 0, slider.dispatchEvent(new Event('input'))")
            first = await browser.run("JSON.stringify(order)")
            await browser.run("slider.value = slider.max, slider.dispatchEvent(new Event('input'))")
            assert await browser.run("JSON.stringify(order)") != first

            # A suppressed box says who did it, with the keyboard alone.
            await browser.run("slider.value = 0, part('before').click()")
            place = await browser.run("facts.suppressions[0].suppressors.findIndex(s => s >= 0)")
            await browser.run(f"drawn.value = {place + 1}, drawNMS()")
            await browser.run("nms.place.focus()")
            press = "new KeyboardEvent('keydown', {key: 'ArrowLeft', bubbles: true})"
            await browser.run(f"document.activeElement.dispatchEvent({press})")
            said = await browser.run("part('nms-status').textContent")
            assert f"Number {place + 1} by score" in said
            assert "is suppressed by number" in said

            # Another point is followed by the answer and by the equations.
            before = await browser.run("part('equations').textContent + part('why').textContent")
            await browser.run("part('point').value = 2")
            await browser.run("part('point').dispatchEvent(new Event('change'))")
            after = await browser.run("part('equations').textContent + part('why').textContent")
            assert after != before
            assert await browser.run("chosen.point") == 2
            right = "new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true})"
            await browser.run(f"overview.place.dispatchEvent({right})")

            ground = "theme.click(), getComputedStyle(document.body).backgroundColor"
            assert await browser.run(ground) != await browser.run(ground)

    def test_the_page_answers_to_sliders_keys_and_choices(self, facts, tmp_path, monkeypatch):
        monkeypatch.setattr(charts, "draw_charts", lambda _: {})
        asyncio.run(self._look(tmp_path, page.render(facts)))


def test_the_classic_example_is_what_the_code_gives():
    found = classic.rendered()
    assert found == {name: (classic.DOCS / name).read_text(encoding="utf-8") for name in found}
    for number in ("18×25×512", "= 450", "= 4,050", "H×W×18", "H×W×36", "228×228"):
        assert number in found["classic.md"]
