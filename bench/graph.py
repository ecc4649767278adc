"""Converts the default model anew, for the package: python -m bench.graph.

Its graph ships, so that the first run on a CPU needs neither seconds of conversion nor torch. A
test compares it with the model. After it, `python -m bench.quantise` makes the one in int8.
"""

from stream_rpn.models import DEFAULT_MODEL
from stream_rpn.models.checkpoint import load_model
from stream_rpn.models.graphs import PACKAGE
from stream_rpn.network.converted import Converted


def main():
    path = PACKAGE / "models" / f"{DEFAULT_MODEL}.xml"
    # The weights ship in float16 as well.
    Converted.of(load_model(DEFAULT_MODEL)).save(path, half=True)
    print(f"{path}: {path.stat().st_size + path.with_suffix('.bin').stat().st_size} bytes")


if __name__ == "__main__":
    main()
