"""Benchmark data: pinned sources, and converters to the JSON lines that the suites read."""
