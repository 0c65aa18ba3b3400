"""How fast the library is, as ratios between things timed in turn in one run: ``python -m benchmarks``."""
