"""Selection of the torch device."""

import torch

from fusioner.errors import FusionerError


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """Return the device "cpu", "cuda", "cuda:1" or "mps"; "auto" or None: the first available of cuda, mps, cpu.

    Raises:
        FusionerError: there is no such device on this machine.
    """
    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise FusionerError(f"there is no device '{name}': choose auto, cpu, cuda, cuda:N or mps")
    present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.mps.is_available())}[device.type]
    if (device.index or 0) >= present:
        raise FusionerError(f"device '{name}' is not available on this machine: use --device cpu or auto")
    return device
