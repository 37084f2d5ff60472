"""Modules that hand on the output of the one before: containers, identities, reshapes."""

from __future__ import annotations

from torch import Tensor


class Same:
    """Whether a module hands on the output of the one before it, unchanged.

    Args:
        ordered: only where the features have the same shape and order, too.
    """

    def __init__(self, *, ordered: bool = False) -> None:
        self.ordered = ordered
        self.last: tuple[Tensor, int, str] | None = None

    def of(self, name: str, output: Tensor) -> str | None:
        """The layer whose output this is too; None for a new one."""
        if self.last is not None:
            tensor, version, other = self.last
            if (
                output.data_ptr() == tensor.data_ptr()
                and output.shape[0] == tensor.shape[0]
                and output.stride(0) == tensor.stride(0)  # else rows are other samples
                and output.numel() == tensor.numel()
                and output._version == version
                and not (self.ordered and _order(output) != _order(tensor))
            ):
                return other
        # Held until the next output, so that its memory is not given to another tensor.
        self.last = output, output._version, name
        return None


def _order(output: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(output.shape), output.stride()
