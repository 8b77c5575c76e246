"""Devices by their data sheets, and what work takes on them by a roofline. Nothing is measured."""

from __future__ import annotations

from dataclasses import dataclass

PRECISIONS = ("float16", "float32")


@dataclass(frozen=True)
class Accelerator:
    """A device by its data sheet.

    Attributes
    ----------
    tflops
        FP16 on tensor cores, without sparsity.
    fp32_tflops
        FP32, without tensor cores.
    gb_per_s
        Bandwidth of its memory.
    compute_share, memory_share
        Of both that a model reaches (*assumed*).
    """

    name: str
    tflops: float
    fp32_tflops: float
    gb_per_s: float
    compute_share: float = 0.4
    memory_share: float = 0.7

    def seconds(self, flops: float, read_bytes: float, precision: str = "float16") -> float:
        """Time of work that is bound by arithmetic or by memory, whichever takes longer."""
        tflops = self.tflops if precision == "float16" else self.fp32_tflops
        compute_s = flops / (tflops * 1e12 * self.compute_share)
        memory_s = read_bytes / (self.gb_per_s * 1e9 * self.memory_share)
        return max(compute_s, memory_s)


# NVIDIA, Jetson AGX Orin 64GB: 85 TFLOPS FP16 with sparsity, half of it without; 256-bit LPDDR5.
ORIN = Accelerator("AGX Orin 64GB", tflops=42.5, fp32_tflops=5.3, gb_per_s=204.8)
# NVIDIA, A100 80GB PCIe.
A100 = Accelerator("A100 80GB", tflops=312.0, fp32_tflops=19.5, gb_per_s=1935.0)
