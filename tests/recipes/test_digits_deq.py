"""The digits recipe: a training that was stopped goes on to the same model, to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).resolve().parents[2] / "recipes" / "digits_deq" / "train.py"


def train(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(out), "--epochs", "2", "--rtol", "0.1", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)


@pytest.mark.slow
def test_a_training_that_was_stopped_goes_on_to_the_same_model(tmp_path: Path) -> None:
    more = ("--warm-start", "--dropout", "0.2")
    whole = train(tmp_path / "whole", *more)
    assert whole.returncode == 0, whole.stderr
    stopped = train(tmp_path / "parts", *more, "--stop-after", "1")
    assert "stopped after epoch 1 of 2; the same command goes on" in stopped.stdout
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    resumed = train(tmp_path / "parts", *more)
    assert "going on from epoch 1" in resumed.stdout
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert [row["accuracy"] for row in logs[0]] == [row["accuracy"] for row in logs[1]]
    assert logs[0][1]["accuracy"] > 0.8

    other = train(tmp_path / "parts", "--seed", "1", *more)
    assert other.returncode == 2
    assert "belongs to another training" in other.stderr
