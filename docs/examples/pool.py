"""A pool of workers builds one index: which files mention which word."""

import multiprocessing
import sys
import zlib

import mmpc

BUCKETS = 64  # few workers ever write to the same page, and if they do, nobody waits


class Index:
    """Pages of pairs (word, file); a word's page is found by its hash. Workers share the store."""

    def __init__(self, path: str) -> None:
        self.pages: mmpc.PageCache[dict[str, bool]] = mmpc.open(path, mmpc.Union(), create=True)
        if "first" not in self.pages.meta():
            buckets = [self.pages.allocate({})[0] for _ in range(BUCKETS)]  # ids of a new store follow each other
            self.pages.cas_root_in_meta("first", None, buckets[0])
        self.first = self.pages.meta_pid_for_name("first")

    def bucket(self, word: str) -> int:
        return self.first + zlib.crc32(word.encode()) % BUCKETS

    def add(self, name: str, text: str) -> None:
        self.pages.append_many((self.bucket(word), {f"{word} {name}": True}) for word in set(text.split()))

    def find(self, word: str) -> list[str]:
        pairs = (pair.split(" ", 1) for pair in self.pages.get(self.bucket(word)).unwrap())
        return sorted(name for found, name in pairs if found == word)


def work(index: Index, name: str, text: str) -> None:
    index.add(name, text)  # the handle came by pickle; this process opened the store for itself


def main(path: str = "index") -> None:
    texts = {"a.txt": "to be or not", "b.txt": "not here", "c.txt": "to have or have not"}
    index = Index(path)  # before there are workers: one process makes the pages
    with index.pages, multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(work, [(index, name, text) for name, text in texts.items()])
        index.pages.flush()  # a sync or two for what all workers did
        print("not:", *index.find("not"))
        print("or:", *index.find("or"))


if __name__ == "__main__":
    main(*sys.argv[1:])
