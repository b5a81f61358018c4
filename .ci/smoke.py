"""An installed mmpc works: run by .ci/run matrix in each environment, outside the source tree."""

import pickle
import sys
import tempfile
from importlib.machinery import EXTENSION_SUFFIXES

import mmpc
import mmpc._native


def main() -> None:
    with tempfile.TemporaryDirectory() as parent:
        path = f"{parent}/store"
        with mmpc.open(path, mmpc.Append(), create=True) as pages:
            pid, _ = pages.allocate(b"one")
            pages.append(pid, b", two")
            assert pages.get(pid).value == b"one, two"
            with pickle.loads(pickle.dumps(pages)) as again:
                assert again.get(pid).value == b"one, two"
        with mmpc.open(path, mmpc.Append()) as pages:
            assert pages.get(pid).value == b"one, two"
    assert mmpc._native.__file__.endswith(tuple(EXTENSION_SUFFIXES))
    print("smoke: ok on", sys.version.split()[0], "with", mmpc._native.__file__)


main()
