"""What the other tests of this folder rely on: the device refuses a mixture, and every wait for it is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from devices import Device

from fixedpoint.config.checkpoint import load_checkpoint, save_checkpoint
from fixedpoint.core.transfer import to_device

pytestmark = pytest.mark.gpu

WAITS = {
    "a number": lambda z: float(z.sum()),
    "a truth": lambda z: bool((z > 0).all()),
    "a copy on the host": lambda z: z.cpu(),
    "a copy into the host's memory": lambda z: torch.empty(3, 2).copy_(z),
    "a mask": lambda z: z[z > 0.5],
    "places": lambda z: (z > 0.5).nonzero(),
    "numbers of the host": lambda z: torch.ones(3, 2).to(z.device),
    "a list of the host": lambda z: z[:, [1, 0]],
}
GOES_ON = {
    "arithmetic": lambda z: (z * 2 + z.sum(0)).cumsum(1).amax(1),
    "choice": lambda z: torch.where(z > 0.5, z, 0.0).masked_fill(z > 1, 2.0),
    "a slice": lambda z: z[1:, 0].clone(),
    "indices that are there": lambda z: z[torch.arange(2, device=z.device)].index_copy(
        0, torch.arange(2, device=z.device), z[:2]
    ),
    "memory": lambda z: (z.clone().copy_(z), torch.zeros(4, device=z.device), torch.full_like(z, 3.0)),
    "what the host has decided": lambda z: z + to_device(np.ones((3, 2), dtype=np.float32), z.device),
}


@pytest.mark.parametrize("what", WAITS)
def test_the_host_waits(device: Device, what: str) -> None:
    z = torch.linspace(0, 1, 6).view(3, 2).to(device.device)
    before = device.waits
    WAITS[what](z)
    assert device.waits > before


@pytest.mark.parametrize("what", GOES_ON)
def test_the_host_goes_on(device: Device, what: str) -> None:
    z = torch.linspace(0, 1, 6).view(3, 2).to(device.device)
    before = device.waits
    GOES_ON[what](z)
    assert device.waits == before


@pytest.mark.parametrize(
    "mix",
    [
        lambda z: z + torch.ones(3, 2),
        lambda z: torch.where(torch.ones(3, 2, dtype=torch.bool), z, z),
        lambda z: torch.cat([z, torch.ones(3, 2)]),
        lambda z: z.index_copy(0, torch.arange(2), z[:2]),
        lambda z: torch.ones(3, 2)[torch.arange(2, device=z.device)],
    ],
)
def test_tensors_of_two_devices_do_not_go_together(device: Device, mix: object) -> None:
    with pytest.raises((RuntimeError, IndexError)):
        mix(torch.ones(3, 2).to(device.device))


def test_values_are_those_of_the_host(device: Device) -> None:
    z = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    there = z.to(device.device)
    view = there[:, 1]
    view.mul_(2.0)
    z[:, 1] *= 2.0
    assert there.device == torch.device(device.device)
    torch.testing.assert_close(there.cpu(), z, rtol=0, atol=0)
    torch.testing.assert_close((there.mT @ there).cpu(), z.mT @ z, rtol=1e-13, atol=1e-13)


def test_a_checkpoint_of_the_device_comes_back_on_the_host(device: Device, tmp_path: Path) -> None:
    z = torch.linspace(0, 1, 6).view(3, 2)
    save_checkpoint(tmp_path / "x.safetensors", {}, {"z": z.to(device.device), "across": z.to(device.device).T})
    found = load_checkpoint(tmp_path / "x.safetensors", {}, of="training")
    assert found["z"].device == torch.device("cpu")
    assert torch.equal(found["z"], z)
    assert torch.equal(found["across"], z.T)
