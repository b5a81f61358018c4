"""The demo: an inverted index of Python's own standard library, by processes that are killed meanwhile.

    python -m mmpc.demo index --workers 4 --kill-every 0.1     build, recount in one process, judge
    python -m mmpc.demo search WORD...                         the files that hold all the words
    python -m mmpc.demo check                                  recount again
    python -m mmpc.demo index --peer lmdb                      the same job on lmdb, side by side

Reading order: ``sources`` (files and words), ``index`` (how the index lies in pages), ``writer`` (one file
into the index), ``crew`` (workers, kills, replacements), ``recount`` (the judge), ``search``, ``peer``;
``report``, ``place`` and ``__main__`` hold what is printed, where the store lies, and the command line.
"""
