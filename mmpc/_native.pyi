"""What csrc/mmpc.cdef lists, as cffi presents it."""

from typing import Any

ffi: Any
lib: Any
