"""Recall before and after `stream-rpn train`: python -m bench.loop SET=ANNOTATIONS,IMAGES ….

Every set is named with its COCO annotations and its images (folder or tar), separated by a comma; a
fifth of its images is held out. One run a set, as `stream-rpn train` makes it, from the default
model. The numbers of examples/loop.md come from here.
"""

import argparse
import tempfile
import time
from pathlib import Path

from bench import report
from stream_rpn import compute
from stream_rpn.models import DEFAULT_MODEL
from stream_rpn.training.config import ASSIGNMENTS, TrainConfig
from stream_rpn.training.loop import train

NUMBERS = ("AR@10", "AR@100", "AR@1000", "R50@10", "R50@100", "R70@100")


def fine_tune(name, annotations, images, arguments, folder, **settings):
    """Returns the rows of one run."""
    device = compute.choose_device(arguments.device)
    config = TrainConfig(
        annotations=annotations,
        images=(images,),
        output=str(Path(folder) / f"{name}.safetensors"),
        model=arguments.model,
        device=str(device),
        epochs=arguments.epochs,
        minutes=arguments.minutes,
        **settings,
    )
    course, counts = [], {}

    def progress(row):
        if "train_images" in row:
            counts.update(row)
        if "AR@100" in row:
            course.append({"step": row["step"], **{n: round(row[n], 4) for n in NUMBERS}})
            print(f"{name} step {row['step']}: AR@100 {row['AR@100']:.3f}", flush=True)

    started = time.monotonic()
    trained = train(config, progress=progress)
    return {
        "data": name,
        "settings": settings,
        "train_images": counts["train_images"],
        "held_out": trained.before["images"],
        "objects": trained.before["objects"],
        "steps": trained.step,
        "best_step": trained.best_step,
        "seconds": round(time.monotonic() - started, 1),
        "before": {n: round(trained.before[n], 4) for n in NUMBERS},
        "after": {n: round(trained.after[n], 4) for n in NUMBERS},
        "course": course,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sets", nargs="+", metavar="SET=ANNOTATIONS,IMAGES")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--epochs", type=int, default=TrainConfig.epochs)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--assignment", nargs="+", choices=ASSIGNMENTS, default=[None])
    parser.add_argument("--learning-rate", nargs="+", type=float, default=[None])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    rows = []
    for one in arguments.sets:
        name, _, files = one.partition("=")
        annotations, images = files.split(",")
        for assignment in arguments.assignment:
            for rate in arguments.learning_rate:
                settings = {"assignment": assignment, "learning_rate": rate}
                settings = {key: value for key, value in settings.items() if value is not None}
                with tempfile.TemporaryDirectory() as folder:
                    rows.append(fine_tune(name, annotations, images, arguments, folder, **settings))
                row = rows[-1]
                print(
                    f"{name} {settings}: AR@100 {row['before']['AR@100']:.3f} → "
                    f"{row['after']['AR@100']:.3f} in {row['seconds']:.0f} s",
                    flush=True,
                )
                if arguments.json:
                    report.write_json(arguments.json, "loop", rows, model=arguments.model)


if __name__ == "__main__":
    main()
