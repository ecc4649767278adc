"""The commands: each a module with `add_arguments(parser)` and `run(arguments)`."""

# Subcommand → (module with add_arguments(parser) and run(arguments) -> exit code, one line).
COMMANDS = {
    "batch": ("stream_rpn.commands.batch", "do any number of videos, on a cluster of Ray"),
    "eval": (
        "stream_rpn.commands.eval",
        "measure recall on annotated images",
    ),
    "train": ("stream_rpn.commands.train", "train a proposal network"),
    "export": (
        "stream_rpn.commands.export",
        "write a model as a graph for ONNX Runtime, OpenVINO and others",
    ),
    "explain": (
        "stream_rpn.commands.explain",
        "open the network up on one frame: why these boxes, and not that one",
    ),
    "bench": (
        "stream_rpn.commands.bench",
        "measure speed on your video and machine, and say what limits it",
    ),
    "render": ("stream_rpn.commands.render", "draw saved results onto their video"),
    "models": ("stream_rpn.commands.models", "list the models"),
    "devices": ("stream_rpn.commands.devices", "list the cameras of this machine"),
    "doctor": (
        "stream_rpn.commands.doctor",
        "say what this machine has and what 'auto' would choose",
    ),
    "completion": (
        "stream_rpn.commands.completion",
        "print what has a shell complete options, models and files",
    ),
}
