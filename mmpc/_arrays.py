"""What numpy makes of a View (csrc/hot_view.c, _portable_view.py); imported when first needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def array_of(view: Any, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
    """The view as a read-only array on the same memory, which keeps the bytes held; a copy if `dtype` or `copy` ask
    for one.
    """
    import numpy as np

    own = np.dtype(view.dtype or "u1")
    if view.nbytes:
        # frombuffer keeps the memoryview, so nobody can make the array writeable
        array: NDArray[Any] = np.frombuffer(view.raw, own).reshape(view.shape)
    else:
        array = np.empty(view.shape, own)
        array.flags.writeable = False
    other = dtype is not None and np.dtype(dtype) != own
    if other and copy is False:
        raise ValueError(f"a view of dtype {own} has no {np.dtype(dtype)} without a copy")
    if other:
        return array.astype(dtype)
    return array.copy() if copy else array


def dlpack(view: Any, **options: Any) -> Any:
    """The capsule that numpy makes of the array; numpy says which versions of the protocol know read-only memory."""
    return array_of(view).__dlpack__(**options)


def dlpack_device(view: Any) -> tuple[int, int]:
    """The processor's memory."""
    device: tuple[int, int] = array_of(view).__dlpack_device__()
    return device
