"""The machine that machine code was made for, and whether this machine can run it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import torch

# Prefixes of those flags of a processor that compilers make use of. The other flags are about
# virtualisation and about mitigations of attacks.
_INSTRUCTION_SETS = (
    "abm", "adx", "aes", "amx", "asimd", "avx", "bf16", "bmi", "f16c", "fma", "fphp", "gfni",
    "i8mm", "lzcnt", "movbe", "pclmul", "popcnt", "sha", "sse", "ssse", "sve", "vaes", "vpclmul",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """The kind of machine that a library was compiled for.

    Attributes:
        torch_version: the exact version of torch, whose functions the library calls.
        device: ``cpu``, or the GPU's name and compute capability.
        machine: operating system and architecture.
        instructions: flags of the processor's instruction sets, such as ``avx2``.
    """

    torch_version: str
    device: str
    machine: str
    instructions: tuple[str, ...]

    @classmethod
    def here(cls, device: torch.device) -> Target:
        """Describe this machine and the device on it that members run on."""
        name = device.type
        if device.type == "cuda":
            major, minor = torch.cuda.get_device_capability(device)
            name = f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
        return cls(
            torch_version=torch.__version__,
            device=name,
            machine=f"{platform.system()} {platform.machine()}",
            instructions=_instruction_sets(),
        )

    def misfit(self, here: Target) -> str | None:
        """Explain why a library for this target does not run on a machine; None if it does.

        Args:
            here: the machine that is to run it.
        """
        for name in ("torch_version", "device", "machine"):
            if (built := getattr(self, name)) != (actual := getattr(here, name)):
                return f"made for {name.replace('_', ' ')} {built}, and this is {actual}"
        missing = sorted(set(self.instructions) - set(here.instructions))
        if missing:
            return f"made for a processor with {', '.join(missing)}, which this one lacks"
        return None


def _instruction_sets() -> tuple[str, ...]:
    """List the instruction sets of this processor; nothing where the system is not Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return ()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return tuple(
                sorted(flag for flag in value.split() if flag.startswith(_INSTRUCTION_SETS))
            )
    return ()
