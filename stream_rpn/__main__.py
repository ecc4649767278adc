"""`python -m stream_rpn`."""

import sys

from stream_rpn.cli import main

sys.exit(main())
