"""Counts the work of a network on the ``meta`` device: shapes only, no weights, no arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry, sdpa_flop_count

from mllm_sched.pipeline.work import Work

DLA_LOADABLES = 16
"""Segments that one DLA core holds at a time (TensorRT's limit)."""

# Operators a DLA core takes, from TensorRT's list of layers. LayerNorm, softmax, attention,
# GELU (through erf), embeddings, resizing and copies are not among them.
_DLA = {
    *("conv1d", "conv2d", "batch_norm", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"),
    *("add", "add_", "mul", "mul_", "relu", "relu_", "sigmoid", "tanh", "linear"),
}
_DLA_POOLING_WINDOW = 8  # pixels a side, at most

_ALLOCATIONS = {"empty", "empty_like", "empty_strided"}


@dataclass(frozen=True)
class Operator:
    """One operator that was launched."""

    name: str
    flops: int
    bytes: int
    parameters: int
    dla: bool


class Recorder(TorchDispatchMode):
    """Records in order every operator that moves data.

    Under ``torch.inference_mode`` an operator arrives here whole (``linear``, attention), as a
    GPU launches it, and not in the parts it could be made of.

    Parameters
    ----------
    parameters
        Tensors that are constant; a linear layer needs a constant weight to run on the DLA.
    """

    def __init__(self, parameters: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.operators: list[Operator] = []
        self._constants = {_memory(tensor) for tensor in parameters}
        self._unread = set(self._constants)  # a parameter counts where it is read first

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        inputs, outputs = _tensors((args, kwargs)), _tensors(output)
        if name in _ALLOCATIONS or _is_view(func, inputs, outputs):
            return output
        read_first = [tensor for tensor in inputs if _memory(tensor) in self._unread]
        self._unread -= {_memory(tensor) for tensor in read_first}
        operator = Operator(
            name=name,
            flops=_flops(name, func, args, kwargs, output),
            bytes=sum(tensor.numel() * tensor.element_size() for tensor in inputs + outputs),
            parameters=sum(tensor.numel() for tensor in read_first),
            dla=self._fits_dla(name, args),
        )
        self.operators.append(operator)
        return output

    def _fits_dla(self, name: str, args: Any) -> bool:
        if name == "linear":
            return _memory(args[1]) in self._constants
        if name == "adaptive_avg_pool2d":
            sizes = zip(args[0].shape[-2:], args[1], strict=True)
            return all(size / out <= _DLA_POOLING_WINDOW for size, out in sizes)
        return name in _DLA


def count_work(model: torch.nn.Module, inputs: Tensor) -> Work:
    """Work of one pass.

    Parameters
    ----------
    model
        On the ``meta`` device, or any other; it is really run there.
    inputs
        What its ``forward`` takes, on the same device.

    Examples
    --------
    >>> with torch.device("meta"):
    ...     work = count_work(torch.nn.Linear(10, 20), torch.empty(1, 10))
    >>> work.flops, work.parameters, work.kernels, work.dla_segments
    (400, 220, 1, 1)
    """
    with torch.inference_mode(), Recorder(model.parameters()) as recorder:
        model(inputs)
    placed = _dla_segments(recorder.operators)
    on_dla = [operator for segment in placed for operator in segment]
    everything, part = _total(recorder.operators), _total(on_dla)
    return Work(
        *everything,
        **{f"dla_{name}": part[i] for i, name in enumerate(_SUMS)},
        dla_segments=len(placed),
    )


def _dla_segments(operators: list[Operator]) -> list[list[Operator]]:
    """Runs of operators the DLA takes, those with most FLOPs, as many as a core holds."""
    runs = [list(run) for fits, run in groupby(operators, lambda operator: operator.dla) if fits]
    runs.sort(key=lambda run: -sum(operator.flops for operator in run))
    return runs[:DLA_LOADABLES]


_SUMS = ("flops", "bytes", "kernels", "parameters")


def _total(operators: list[Operator]) -> tuple[int, int, int, int]:
    """The sums named in ``_SUMS``."""
    return (
        sum(operator.flops for operator in operators),
        sum(operator.bytes for operator in operators),
        len(operators),
        sum(operator.parameters for operator in operators),
    )


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _is_view(func: Any, inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    """Whether nothing was moved: the output is the memory of an input, and was not written."""
    if func._schema.is_mutable:
        return False
    known = {_memory(tensor) for tensor in inputs}
    return all(_memory(tensor) in known for tensor in outputs)


def _linear_flops(inputs: Tensor, weight: Tensor, output: Tensor) -> int:
    return 2 * output.numel() * inputs.shape[-1]


def _conv_flops(inputs: Tensor, weight: Tensor, output: Tensor) -> int:
    return conv_flop_count(list(inputs.shape), list(weight.shape), list(output.shape))


# Whole operators; torch's registry knows the parts they could be made of.
_FLOPS: dict[str, Callable[[Tensor, Tensor, Tensor], int]] = {
    "linear": _linear_flops,
    "matmul": _linear_flops,
    "conv1d": _conv_flops,
    "conv2d": _conv_flops,
    "conv3d": _conv_flops,
}


def _flops(name: str, func: Any, args: Any, kwargs: dict[str, Any], output: Any) -> int:
    if name == "scaled_dot_product_attention":
        return int(sdpa_flop_count(*(tensor.shape for tensor in args[:3])))
    if name in _FLOPS:
        return int(_FLOPS[name](args[0], args[1], output))
    if func.overloadpacket in flop_registry:
        return int(flop_registry[func.overloadpacket](*args, **kwargs, out_val=output))
    return 0
