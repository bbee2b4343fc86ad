"""Atomic writing of files."""

import contextlib
import os
import pathlib
import uuid
from collections.abc import Callable
from typing import BinaryIO

UNFINISHED = ".unfinished-pedcc"
ABANDONED = 3600.0  # seconds


def write_file(path: pathlib.Path, save: Callable[[BinaryIO], object]) -> None:
    """Writes a file atomically: under a temporary name, which is then renamed.

    Each write uses a unique temporary name in the same folder. Whatever other threads
    and processes write there, readers see the old file or a new one. A write that fails
    leaves nothing behind. A killed process leaves its temporary file, which the next
    write in that folder deletes if nothing was written to it for an hour. A writer that
    was suspended for that long gets a `FileNotFoundError`.

    Args:
        path: `pathlib.Path` of the file. Its folder must exist.
        save: Function that writes the content to a binary file, its argument.

    Raises:
        OSError: The file cannot be written, e.g. because the disk is full.
    """
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{UNFINISHED}")
    try:
        with unfinished.open("xb") as file:
            # The clock of the file system may be that of another machine.
            _delete_abandoned(path.parent, now=unfinished.stat().st_mtime)
            save(file)
            file.flush()
            os.fsync(file.fileno())  # otherwise a power failure may leave an empty file
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _delete_abandoned(folder: pathlib.Path, now: float) -> None:
    for path in folder.glob(f"*{UNFINISHED}"):
        # Another process may delete it, too, or another user may own it.
        with contextlib.suppress(OSError):
            if now - path.stat().st_mtime > ABANDONED:
                path.unlink()
