"""From csrc/ to the extension module ``mmpc._native``; pyproject.toml names `BuildExt` as its build_ext.

The module is cffi in API mode: ``mmpc.cdef`` says what Python sees, ``mmpc.h`` is what the generated C
includes, and every ``csrc/*.c`` is compiled beside it, so a new C file needs no entry anywhere. ``hot*.c``
holds the C-API face of the hot verbs, exported from the same shared object as ``PyInit__hot``; other
interpreters than CPython build without it and use the cffi face.

The environment changes a build without an edit:

=================  ===================================================================================
``CFLAGS``         come after our own flags and so win, e.g. ``-O1 -g -fsanitize=address``
``LDFLAGS``        as usual
``MMPC_DEFINES``   macros, separated by blanks: ``MMPC_POINTS``, ``MMPC_DISK``, ``MMPC_NO_METRICS``, ``NAME=VALUE``
``MMPC_WERROR``    ``1``: warnings are errors (only in .ci: a newer compiler of a user must not fail)
=================  ===================================================================================
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
MODULE = "mmpc._native"
LIMITED_API = "0x030B0000"  # CPython 3.11; the wheel's tag in pyproject.toml says the same

# What cffi generates is not ours to mend; the C core itself stays free of these warnings.
GENERATED_C_PRAGMAS = """\
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#pragma GCC diagnostic ignored "-Wcast-function-type"
"""


class BuildExt(build_ext):
    """build_ext that fills in the sources and flags of `MODULE`."""

    def finalize_options(self) -> None:
        """Complete the extension, before anybody (also sdist) asks for its files."""
        super().finalize_options()
        self.force = True  # an object file does not know which CFLAGS or MMPC_DEFINES made it
        for ext in self.extensions:
            if ext.name == MODULE:
                complete(ext)

    def build_extension(self, ext: Extension) -> None:
        """Generate the cffi C file into the build folder, then compile as usual."""
        if ext.name == MODULE:
            generated = Path(self.build_temp) / "_native.c"
            generated.parent.mkdir(parents=True, exist_ok=True)
            emit(generated)
            ext.sources = [*sources(), str(generated)]
        super().build_extension(ext)


def complete(ext: Extension) -> None:
    """Set sources, depends (what puts headers, cdef and this file into the sdist) and flags of `ext`."""
    ext.sources = sources()
    ext.depends = names("*.h") + names("*.cdef") + names("build_ffi.py")
    ext.py_limited_api = on_cpython()
    if on_cpython():
        ext.extra_compile_args.append(f"-DPy_LIMITED_API={LIMITED_API}")
    ext.extra_compile_args += [f"-D{macro}" for macro in os.environ.get("MMPC_DEFINES", "").split()]
    if os.environ.get("MMPC_WERROR") == "1":
        ext.extra_compile_args.append("-Werror")
    ext.extra_compile_args += shlex.split(os.environ.get("CFLAGS", ""))


def emit(path: Path) -> None:
    """Write the C that cffi generates from mmpc.cdef to `path`."""
    from cffi import FFI

    ffi = FFI()
    ffi.cdef((HERE / "mmpc.cdef").read_text())
    ffi.set_source(MODULE, '#include "mmpc.h"\n')
    ffi.emit_c_code(str(path))
    path.write_text(GENERATED_C_PRAGMAS + path.read_text())


def sources() -> list[str]:
    """The C files of the core, as paths relative to the project's root."""
    return [name for name in names("*.c") if on_cpython() or not Path(name).name.startswith("hot")]


def names(pattern: str) -> list[str]:
    """Files of csrc/ that match `pattern`, sorted, relative to the project's root (setuptools' way)."""
    return [f"csrc/{path.name}" for path in sorted(HERE.glob(pattern))]


def on_cpython() -> bool:
    """Whether this interpreter has CPython's own C API."""
    return sys.implementation.name == "cpython"
