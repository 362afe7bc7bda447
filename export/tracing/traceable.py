"""Layers that the exporter cannot trace, or traces into what ONNX Runtime computes otherwise, put differently.

Images have one size in a graph, so that resizing and pooling are products with matrices, or means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def traceable() -> Iterator[None]:
    """Inside the block, run a module once as it is and trace it afterwards."""
    from torch.nn import AdaptiveAvgPool2d, AvgPool2d, functional

    with (
        _replaced(AdaptiveAvgPool2d, "forward", _pool_as_matrices),
        _replaced(AvgPool2d, "forward", _pool_over_everything_as_mean),
        _replaced(functional, "interpolate", _antialiased_as_matrices),
        _replaced(functional, "batch_norm", _standardised),
        _replaced(functional, "fold", _folded),
    ):
        yield


@contextmanager
def _replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Inside the block, what `owner` has under `name` is what `make` makes of it."""
    before = getattr(owner, name)
    setattr(owner, name, make(before))
    try:
        yield
    finally:
        setattr(owner, name, before)


def _standardised(before: Any) -> Any:
    """BiT standardises weights by a batch normalisation of what is there; the exporter takes it for a trained one."""
    import torch

    def batch_norm(values: Any, mean: Any, variance: Any, *rest: Any, **options: Any) -> Any:
        if mean is not None or rest or set(options) - {"training", "momentum", "eps"}:
            return before(values, mean, variance, *rest, **options)
        places = [axis for axis in range(values.ndim) if axis != 1]
        spread, centre = torch.var_mean(values, places, correction=0, keepdim=True)
        return (values - centre) * torch.rsqrt(spread + options.get("eps", 1e-5))

    return batch_norm


def _folded(before: Any) -> Any:
    """MobileViTv2 puts patches that do not overlap side by side by an operator that ONNX has from opset 18 on."""

    def fold(values: Any, output_size: Any, kernel_size: Any, *rest: Any, **options: Any) -> Any:
        apart = not rest and tuple(options.get("stride", (1, 1))) == tuple(kernel_size)
        if not apart or set(options) != {"stride"} or values.ndim != 3:
            return before(values, output_size, kernel_size, *rest, **options)
        (rows, columns), (height, width) = kernel_size, output_size
        patches = values.reshape(
            -1, values.shape[1] // (rows * columns), rows, columns, height // rows, width // columns
        )
        return patches.permute(0, 1, 4, 2, 5, 3).reshape(-1, patches.shape[1], height, width)

    return fold


def _pool_as_matrices(_: Any) -> Any:
    """Adaptive pools, which the exporter takes only where it knows every size, as products with two matrices."""

    def forward(self: Any, values: Any) -> Any:
        sizes = self.output_size if isinstance(self.output_size, tuple) else (self.output_size,) * 2
        rows, columns = (int(size) for size in values.shape[-2:])
        down, across = _means(rows, sizes[0] or rows), _means(columns, sizes[1] or columns)
        return down @ values @ across.T

    return forward


def _means(size: int, out: int) -> Any:
    """(out, size): every row takes the mean of its share of the places, which may overlap, as torch cuts them."""
    import torch

    matrix = torch.zeros(out, size)
    for place in range(out):
        begin, end = place * size // out, -(-(place + 1) * size // out)
        matrix[place, begin:end] = 1 / (end - begin)
    return matrix


def _pool_over_everything_as_mean(before: Any) -> Any:
    """EfficientNet pools with a kernel larger than the map: torch divides by the map, ONNX Runtime by the kernel."""

    def forward(self: Any, values: Any) -> Any:
        sizes = self.kernel_size if isinstance(self.kernel_size, tuple) else (self.kernel_size,) * 2
        covers = all(kernel > int(size) for kernel, size in zip(sizes, values.shape[-2:], strict=True))
        if not (covers and self.ceil_mode and self.padding in (0, (0, 0)) and self.divisor_override is None):
            return before(self, values)
        return values.mean((2, 3), keepdim=True)

    return forward


def _antialiased_as_matrices(before: Any) -> Any:
    """Resizing with antialiasing, as of position embeddings, is a product with a matrix a side.

    The matrices are found in the run before the trace, for whatever runs meanwhile is traced itself.
    """
    import torch

    matrices: dict[tuple[Any, ...], Any] = {}

    def side(size: int, out: int, options: Any) -> Any:
        """(out, size): what a column of `size` places becomes."""
        key = (size, out, *sorted(options.items()))
        if key not in matrices:
            matrices[key] = before(torch.eye(size)[None, None], size=(out, size), antialias=True, **options)[0, 0]
        return matrices[key]

    def interpolate(values: Any, size: Any = None, scale_factor: Any = None, *rest: Any, **options: Any) -> Any:
        antialias = options.pop("antialias", False)
        if rest or not antialias or scale_factor is not None or values.ndim != 4:
            return before(values, size, scale_factor, *rest, antialias=antialias, **options)
        outs = size if isinstance(size, tuple | list) else (size, size)
        down, across = (
            side(int(length), int(out), options) for length, out in zip(values.shape[-2:], outs, strict=True)
        )
        return (down @ values.to(torch.float32) @ across.T).to(values.dtype)

    return interpolate
