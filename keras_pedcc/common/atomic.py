"""Files that appear under their names whole, or not at all."""

import contextlib
import os
import pathlib
import uuid
from collections.abc import Callable
from typing import BinaryIO

UNFINISHED = ".unfinished-pedcc"
ABANDONED = 3600.0  # seconds


def write_file(path: pathlib.Path, save: Callable[[BinaryIO], object]) -> None:
    """Writes a file under a temporary name, then gives it its own by one rename.

    Each write has a temporary name of its own in the same folder: whatever other
    threads and processes write there, readers see the old file or a new one. A write
    that fails leaves nothing behind. A killed process leaves its temporary file. The
    next write in that folder deletes it when nothing has been written to it for an
    hour; a living writer that was stopped for so long gets a `FileNotFoundError`.

    Args:
        path: `pathlib.Path` of the file. Its folder must exist.
        save: Function that writes the content to the binary file it is given.

    Raises:
        OSError: The file cannot be written, e.g. because the disk is full.
    """
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{UNFINISHED}")
    try:
        with unfinished.open("xb") as file:
            # The clock of the file system, which may be another machine's.
            _delete_abandoned(path.parent, now=unfinished.stat().st_mtime)
            save(file)
            file.flush()
            os.fsync(file.fileno())  # else a loss of power may leave an empty file
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _delete_abandoned(folder: pathlib.Path, now: float) -> None:
    for path in folder.glob(f"*{UNFINISHED}"):
        # Another process may be deleting it too, or it may be another user's.
        with contextlib.suppress(OSError):
            if now - path.stat().st_mtime > ABANDONED:
                path.unlink()
