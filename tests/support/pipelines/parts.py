"""Parts of the tiny pipelines."""

from __future__ import annotations

from tiny_pipelines.parts import drawn

__all__ = ["drawn"]
