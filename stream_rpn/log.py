"""The logger of the package, "stream_rpn": silent unless the program sets up logging.

It tells of lost connections and drops: damage as warnings, frames given up for newer ones as info.
"""

import logging

log = logging.getLogger("stream_rpn")
# Without any handler Python would print warnings on standard error.
log.addHandler(logging.NullHandler())
