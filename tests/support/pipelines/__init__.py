"""The tiny pipelines of ``benchmarks/tiny_pipelines``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

from tiny_pipelines import MORE, NAMES, arguments, distance, doubled, generators, images_of, pipeline

__all__ = ["MORE", "NAMES", "arguments", "distance", "doubled", "generators", "images_of", "pipeline"]
