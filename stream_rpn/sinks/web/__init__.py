"""What `--serve` listens with: the server, its page, the metrics."""
