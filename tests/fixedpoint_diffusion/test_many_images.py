"""Fifty thousand images through ``fixedpoint invert``: memory does not grow, and nothing is written twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from PIL import Image

PROGRAM = """
import json, sys, threading, time

from fixedpoint.cli.main import main

held, stop = [], threading.Event()


def memory():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024


def look():
    while not stop.wait(0.1):
        held.append(memory())


watching = threading.Thread(target=look)
watching.start()
sys.argv = ["fixedpoint", *sys.argv[1:]]
try:
    main()
except SystemExit as ended:
    status = ended.code
stop.set()
watching.join()
written = next(int(line.split()[1]) for line in open("/proc/self/io") if line.startswith("wchar"))
print(json.dumps({"status": status, "held": held, "written": written}), file=sys.stderr)
"""


def model(folder: Path) -> None:
    """A network of one layer that is nearly nothing."""
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=4,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(2,),
        norm_num_groups=1,
        attention_head_dim=2,
        add_attention=False,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    with torch.no_grad():
        network.conv_out.weight.mul_(0.005)
    network.save_pretrained(folder)
    DDIMScheduler().save_pretrained(folder)


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="requires Linux to count what is written")
@pytest.mark.parametrize("count", [600, pytest.param(50_000, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])])
def test_memory_is_flat_and_bytes_are_written_once(tmp_path: Path, count: int) -> None:
    model(tmp_path / "model")
    (tmp_path / "images").mkdir()
    chance = np.random.default_rng(0)
    for number in range(count):
        pixels = chance.integers(0, 256, (4, 4), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number:05d}.png", compress_level=1)
    batch = max(20, count // 200)
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-c",
                PROGRAM,
                "invert",
                "images",
                "--model",
                "model",
                "--steps",
                "2",
                "--clip",
                "ignore",
            ),
            *("--tolerance", "9", "--batch", str(batch), "-o", "out", "--quiet"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=2900,
        check=False,
    )
    told = json.loads(done.stderr.splitlines()[-1])
    assert told["status"] == 0, done.stderr
    result = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert told["written"] <= 1.2 * result, (told["written"], result)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (len(report["images"]), report["ok"], report["interrupted"]) == (count, True, False)
    assert len(list((tmp_path / "out" / "reconstructions").iterdir())) == count
    held = told["held"]
    begun = max(held[: len(held) // 3])  # with the network and several batches
    print(
        f"{count} images: {begun / 2**20:.0f} MB after a third, {max(held) / 2**20:.0f} MB at most, "
        f"{told['written'] / result:.3f} bytes written for each of the result"
    )
    assert max(held) - begun < 64 * 2**20 if count > 1000 else begun > 0
