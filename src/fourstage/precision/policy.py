"""Which precision is asked for, whether a device has it, and the one that this process uses."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Literal

from fourstage.errors import InputError, MachineError

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16", "fp8"]
CHOICES = ("auto", "fp32", "bf16", "fp8")

# Compute capabilities from which on tensor cores multiply bf16 (Ampere) and fp8 (Ada, Hopper).
_BF16, _FP8 = (8, 0), (8, 9)

_used: Precision | None = None


def resolve(choice: str, device: torch.device) -> Precision:
    """The precision for `choice`: `auto` is bf16 where a CUDA device multiplies it, else fp32.

    Raises:
        InputError: `choice` is not known.
        MachineError: the device has no such products.
    """
    if choice not in CHOICES:
        raise InputError(
            f"compute.precision={choice!r} is not known: write one of {', '.join(CHOICES)}"
        )
    has_bf16 = _has(device, _BF16)
    if choice == "auto":
        return "bf16" if device.type == "cuda" and has_bf16 else "fp32"
    if choice == "fp8" and not (device.type == "cuda" and _has(device, _FP8)):
        raise MachineError(
            "compute.precision=fp8 needs a CUDA device of compute capability 8.9 or more (Ada, "
            f"Hopper, Blackwell), and this is {_named(device)}: write compute.precision=auto"
        )
    if choice == "bf16" and device.type == "cuda" and not has_bf16:
        raise MachineError(
            "compute.precision=bf16 needs a CUDA device of compute capability 8.0 or more, and "
            f"this is {_named(device)}: write compute.precision=fp32"
        )
    return choice


def described(precision: Precision, device: torch.device) -> str:
    """A line on what the choice means on this device; empty for fp32."""
    if precision == "fp32":
        return ""
    if device.type == "cpu" and not _has(device, _BF16):
        return (
            f"precision: {precision}, many times slower than fp32 on this processor, which has no "
            "instructions for it (AVX512_BF16, AMX)"
        )
    return f"precision: {precision} products, fp32 weights"


def use(precision: Precision | None) -> None:
    """Makes every model of this process compute so from now on; None is `auto` of each device.

    With fp32 a CUDA device multiplies all 24 bits of it; TensorFloat-32, which keeps 11, is off.
    """
    import torch

    global _used
    _used = precision
    torch.set_float32_matmul_precision("highest")


def product_dtype(device: torch.device) -> torch.dtype | None:
    """What the inputs of matrix products are rounded to; None where they stay as they are."""
    import torch

    precision = _used or resolve("auto", device)
    return None if precision == "fp32" else torch.bfloat16


def trains_in_fp8() -> bool:
    """Whether the products of training are to be in fp8 where they are large enough."""
    return _used == "fp8"


def autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """A context in which products have this process's precision."""
    import torch

    dtype = product_dtype(device)
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def _has(device: torch.device, capability: tuple[int, int]) -> bool:
    """Whether a device multiplies what CUDA does from `capability` on; a CPU: bf16."""
    import torch

    if device.type == "cuda":
        # ROCm numbers its devices otherwise; all that torch supports multiply bf16.
        return bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= capability
    if device.type == "cpu":
        found = torch.cpu.get_capabilities()
        return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return True


def _named(device: torch.device) -> str:
    import torch

    if device.type != "cuda":
        return f"a {device.type.upper()}"
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} (capability {major}.{minor})"
