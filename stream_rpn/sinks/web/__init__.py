"""The parts of `--serve`: the server, its page, the metrics."""
