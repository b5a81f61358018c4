"""Data loaders share arrays: each process sees the same memory, and nobody copies."""

import multiprocessing
import sys

import numpy

import mmpc

SHAPE = (256, 1024)  # float32: 1 MiB a page


def fill(path: str, batches: int) -> list[int]:
    """Once: writes the batches, and names a page that lists them."""
    pages: mmpc.PageCache[object] = mmpc.open(path, mmpc.LastWriteWins(), create=True)
    with pages:
        written = [pages.allocate(numpy.full(SHAPE, n, dtype=numpy.float32))[0] for n in range(batches)]
        directory, _ = pages.allocate(written)
        pages.cas_root_in_meta("batches", None, directory)
        pages.flush()
        return written


class Loader:
    """A data set as torch.utils.data takes it: it pickles to workers, and each opens the store for itself."""

    def __init__(self, path: str) -> None:
        self.pages: mmpc.PageCache[object] = mmpc.open(path, mmpc.LastWriteWins())
        page = self.pages.get(self.pages.meta_pid_for_name("batches"))
        listed = page.unwrap()
        assert isinstance(listed, list)
        self.batches: list[int] = listed

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, n: int) -> numpy.ndarray:
        """A read-only array on the mapped file; it stays as it is while it lives, whatever is written meanwhile."""
        with self.pages.view(self.batches[n]) as view:
            return numpy.asarray(view)


def work(loader: Loader, n: int) -> float:
    batch = loader[n]
    assert not batch.flags.writeable
    return float(batch.mean())


def main(path: str = "arrays") -> None:
    fill(path, 8)
    loader = Loader(path)
    with loader.pages, multiprocessing.get_context("spawn").Pool(2) as pool:
        print(pool.starmap(work, [(loader, n) for n in range(len(loader))]))
        before = loader[3]
        loader.pages.update(loader.batches[3], lambda _: before + 100)
        print(before.mean(), loader[3].mean())  # who has the old one keeps it; who asks now gets the new one


if __name__ == "__main__":
    main(*sys.argv[1:])
