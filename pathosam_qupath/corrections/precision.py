"""What learning computes in: bfloat16 where the device multiplies it, sums in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def working_dtype(device: str) -> torch.dtype:
    """bfloat16 on processors and GPUs that multiply it, else float32.

    float16, which older GPUs have, needs its losses scaled to learn from them; it is not used.
    """
    kind = device.split(":")[0]
    if kind == "cpu":
        fast = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    else:
        fast = kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def mixed(device: str) -> AbstractContextManager[object]:
    """Products in :func:`working_dtype`, everything else in float32."""
    dtype = working_dtype(device)
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.split(":")[0], dtype)
