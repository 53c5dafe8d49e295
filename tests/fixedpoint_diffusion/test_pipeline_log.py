"""What a pipeline logs of its arguments is logged once, however often its call is carried out."""

from __future__ import annotations

import logging

from tiny_pipelines import arguments, pipeline

from fixedpoint.chains import BlockSecant, ChainSolver
from fixedpoint_diffusion import parallel


class Heard(logging.Handler):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_a_prompt_that_is_cut_off_is_said_once() -> None:
    pipe, heard = pipeline("sd1"), Heard()
    call = {**arguments("sd1"), "prompt": ["a cat " * 30] * 2, "num_inference_steps": 3}
    logger = logging.getLogger("diffusers")
    logger.addHandler(heard)
    try:
        pipe(**call)
        own = [line for line in heard.lines if "was truncated" in line]
        heard.lines.clear()
        sampler = parallel(pipe, solver=ChainSolver(accelerator=BlockSecant()), form="predictions")
        sampler(**call)
        assert [line for line in heard.lines if "was truncated" in line] == own
        assert len(own) > 0
        assert heard.filters == []
        sampler(**call)
        assert [line for line in heard.lines if "was truncated" in line] == own * 2
    finally:
        logger.removeHandler(heard)
