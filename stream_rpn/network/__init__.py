"""The middle of the pipeline: batches of frames → the model on its device → proposals a frame."""

import sys

# Importing openvino would tell its makers so over the network, as would converting a model. Without
# this package, which is installed along with it, it does neither.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
