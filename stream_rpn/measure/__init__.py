"""The instrument: what `stream-rpn bench` measures, and with what; `bench/` builds on it."""
