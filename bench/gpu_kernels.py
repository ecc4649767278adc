"""The proposal stage in the GPU proof: kernels against references, times, launches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu_record import PREDICTED_US, Proof
from bench.workloads import (
    CASES,
    SMALL,
    WORKLOADS,
    Workload,
    compiled,
    detectron2_style,
    head_outputs,
    ours,
    reference,
    torchvision_rpn,
)
from stream_rpn.kernels.nms import nms
from stream_rpn.kernels.proposals import HeadOutputs
from stream_rpn.kernels.propose import select_candidates


def compare(proof: Proof) -> None:
    """Compares the kernels with the references on the host, on ordinary and hard inputs."""
    wrong = 0
    for workload in SMALL if proof.dry else WORKLOADS:
        for case in CASES:
            for dtype in (torch.float32, torch.bfloat16):
                heads = head_outputs(workload, 2, proof.device, dtype, seed=7, case=case)
                if case == "coarse":
                    heads = heads._replace(
                        objectness=[_channels_last(t) for t in heads.objectness],
                        deltas=[_channels_last(t) for t in heads.deltas],
                    )
                found = ours(workload, heads)
                again = ours(workload, heads)
                alone = ours(workload, heads.image(1))
                expected = reference(workload, heads.to("cpu"))
                equal = {
                    name: torch.equal(getattr(found, name).cpu(), getattr(expected, name))
                    for name in ("count", "anchors", "levels", "boxes", "scores")
                }
                right = (
                    equal["count"] and equal["anchors"] and equal["levels"]
                    and torch.allclose(found.boxes.cpu(), expected.boxes, atol=1e-3, rtol=0)
                )  # fmt: skip
                repeated = all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
                batch_free = all(torch.equal(a[1:], b) for a, b in zip(found, alone, strict=True))
                wrong += not (right and repeated and batch_free)
                proof.add(
                    "kernels against references",
                    workload=workload.name,
                    case=case,
                    dtype=str(dtype).removeprefix("torch."),
                    kept=int(found.count.sum()),
                    verdict="equal" if right else "WRONG",
                    same_bits_as_reference=all(equal.values()),
                    same_bits_again=repeated,
                    same_bits_alone=batch_free,
                )
    if wrong:
        raise AssertionError(f"{wrong} cases differ")


def time_stage(proof: Proof) -> None:
    """Times the proposal stage and its two kernels, and the same work done by others."""
    workloads, batches = (SMALL, (2, 1)) if proof.dry else (WORKLOADS, (8, 1, 32))
    for workload in workloads:
        torch.compiler.reset()
        theirs: dict[str, Callable[[HeadOutputs], Any]] = {
            "torchvision eager": torchvision_rpn(workload, proof.device),
            "detectron2-style": partial(detectron2_style, workload),
            "reference, compiled": compiled(workload),
        }
        for batch in batches:
            one = head_outputs(workload, batch, proof.device)
            size = sum(t.nbytes for t in (*one.objectness, *one.deltas))
            sets = [one] + [
                head_outputs(workload, batch, proof.device, seed=seed)
                for seed in range(1, proof.timer.num_sets(size))
            ]
            found = ours(workload, one)
            name = f"{workload.name} b{batch}"
            stage = proof.timer.graphs([partial(ours, workload, heads) for heads in sets])
            slots = sum(one.level_sizes(workload.pre_nms_top_n))
            kept = batch * workload.post_nms_top_n * 28
            item = one.objectness[0].element_size()
            moved = {
                # Logits once, four deltas a survivor; candidates of 24 bytes; slots of 28.
                "propose": batch * (workload.num_anchors * item + slots * (4 * item + 24)),
                "nms": batch * slots * 24 + kept,
                "stage": batch * (workload.num_anchors * item + slots * 4 * item) + kept,
            }
            for part, functions in _parts(workload, sets).items():
                row = stage if part == "stage" else proof.timer.graphs(functions)
                proof.add(
                    "proposal stage",
                    name=name,
                    what=part,
                    us=round(row["median_ms"] * 1e3, 1),
                    p10_us=round(row["p10_ms"] * 1e3, 1),
                    p90_us=round(row["p90_ms"] * 1e3, 1),
                    predicted_us=PREDICTED_US.get((workload.name, batch))
                    if part == "stage"
                    else None,
                    mbytes=round(moved[part] / 1e6, 2),
                    of_copy=proof.share(moved[part], row["median_ms"]),
                    runs=row["runs"],
                )
            for peer, function in theirs.items():
                # Compiling takes half a minute a time.
                needed = 200 if peer == "reference, compiled" else 30
                if proof.left() < needed or (peer == "reference, compiled" and batch > 8):
                    proof.add("proposal stage", name=name, what=peer, note="no time left for it")
                    continue
                try:
                    boxes = function(one)
                    agree = _agreement(found, boxes, one)
                    row = proof.timer.calls([partial(function, heads) for heads in sets[:3]], 3)
                except Exception as error:
                    proof.add(
                        "proposal stage", name=name, what=peer, us=None, note=str(error)[:200]
                    )
                    continue
                proof.add(
                    "proposal stage",
                    name=name,
                    what=peer,
                    us=round(row["median_ms"] * 1e3, 1),
                    p10_us=round(row["p10_ms"] * 1e3, 1),
                    p90_us=round(row["p90_ms"] * 1e3, 1),
                    ours_is_faster_by=round(row["median_ms"] / stage["median_ms"], 1),
                    predicted_us=None,
                    same_boxes=agree,
                    runs=row["runs"],
                )
            del sets, one
            proof.write()


def one_graph(proof: Proof) -> None:
    """Counts launches, host synchronisations and memory of the stage; the two selections."""
    for workload in SMALL if proof.dry else WORKLOADS:
        heads = head_outputs(workload, 2 if proof.dry else 8, proof.device)
        ours(workload, heads)
        row: dict[str, Any] = {"name": f"{workload.name} b{len(heads.image_sizes)}"}
        if not proof.dry:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            torch.cuda.set_sync_debug_mode("error")
            try:
                ours(workload, heads)
                row["host_synchronisations"] = 0
            except RuntimeError as error:
                row["host_synchronisations"] = str(error)[:120]
            finally:
                torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
            row["peak_mib"] = round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
        row |= _launches(partial(ours, workload, heads))
        proof.add("one graph", **row)
    proof.add(
        "one graph",
        name="two shapes of the selection",
        note="there is one, a grid of blocks; one program per image and level was not built",
    )


def _parts(workload: Workload, sets: list[HeadOutputs]) -> dict[str, list[Callable[[], Any]]]:
    sizes = sets[0].level_sizes(workload.pre_nms_top_n)
    return {
        "stage": [],
        "propose": [partial(select_candidates, heads, workload.spec) for heads in sets],
        "nms": [
            partial(nms, select_candidates(heads, workload.spec), sizes, workload.spec)
            for heads in sets
        ],
    }


def _agreement(found: Any, theirs: Any, heads: HeadOutputs) -> float:
    """Returns the share of our boxes that the other found, too, within a hundredth of a pixel."""
    images = len(heads.image_sizes)
    if isinstance(theirs, tuple):
        theirs = [theirs[0][i, : int(theirs[4][i])] for i in range(images)]
    hits = total = 0
    for image in range(min(images, 2)):
        boxes = found.boxes[image, : int(found.count[image])]
        total += len(boxes)
        if len(boxes) and len(theirs[image]):
            distance = torch.cdist(boxes.cpu(), theirs[image].float().cpu(), p=torch.inf)
            hits += int((distance.amin(1) < 1e-2).sum())
    return round(hits / max(total, 1), 4)


def _launches(function: Callable[[], Any]) -> dict[str, Any]:
    """Returns how many kernels and copies a call launches, and the microseconds of each kernel."""
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        return {"kernels": None, "copies_and_fills": None}
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        function()
        torch.cuda.synchronize()
    events = [e for e in recorded.events() if e.device_type.name == "CUDA"]
    other = [e for e in events if e.name.startswith(("Memcpy", "Memset"))]
    micros: Counter[str] = Counter()
    for event in events:
        micros[event.name[:60]] += event.time_range.elapsed_us()
    return {
        "kernels": len(events) - len(other),
        "copies_and_fills": len(other),
        "kernel_us": {name: round(us, 1) for name, us in micros.most_common()},
    }


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)
