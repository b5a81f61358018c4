"""mmpc with one step of a backup broken, to see that tests/crash/test_backup.py notices."""

from __future__ import annotations

from .disk_mutants import Mutant

BACKUP = "mmpc/_backup.py"
MUTANTS = [
    Mutant("copy-named-before-it-is-synced", ((BACKUP, '            os.fsync(files.get("copy"))\n', ""),), ("cut",)),
    Mutant(
        "config-named-before-the-others",
        ((BACKUP, "    _files.sync_directory(dest)  # the others are there when it is\n", ""),
         (BACKUP, '    for name in ("log", "marks"):\n', '    os.rename(os.path.join(dest, "config.last"), os.path.join(dest, "config"))\n'
          '    for name in ("log", "marks"):\n'),
         (BACKUP, '    os.rename(os.path.join(dest, "config.last"), os.path.join(dest, "config"))\n    _files.remove_file', "    _files.remove_file")),
        ("cut",),
    ),
    Mutant(
        "last-config-over-the-first",
        ((BACKUP, '"config.last"), _without(', '"config.new"), _without('),
         (BACKUP, '    os.rename(os.path.join(dest, "config.last"), os', '    os.rename(os.path.join(dest, "config.new"), os')),
        ("cut",),
    ),
    Mutant("no-flush-before-the-copy", ((BACKUP, "        _must(lib.mm_flush(mm, epoch[0], advanced, r), r)\n", ""),), ("copies",)),
    Mutant("what-is-newer-counts", ((BACKUP, "(*config.discards, (durable, newest))", "config.discards"),), ("copies",)),
    Mutant("runs-left-out", ((BACKUP, "                self.runs.add(number)\n", "                pass\n"),), ("copies",)),
]
SHORT = ("copy-named-before-it-is-synced", "runs-left-out")
