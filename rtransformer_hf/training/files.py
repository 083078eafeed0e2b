# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole or not at all."""

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def atomic_write(path: Path, content: bytes):
    """Writes a file, and its folder where there is none. An interruption leaves what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)


@contextmanager
def atomic_folder(target: str | Path, argument: str) -> Iterator[Path]:
    """
    Yields an empty folder, which becomes `target` when the block ends. If the block fails, nothing is left behind.

    Args:
        target: a new or empty folder; parents are made.
        argument: the argument that names it, for the message.

    Raises:
        UsageError: the target is a file, is not empty, or its parent can't be written to.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        problem = "is not empty" if target.is_dir() else "is a file"
        raise UsageError(f"{argument}: {str(target)!r} {problem} (expected a new or empty folder)")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-")
    except OSError as error:
        raise UsageError(
            f"{argument}: {str(target)!r} can't be made (expected a new or empty folder): {error}"
        ) from error
    with temporary as parent:
        unfinished = Path(parent, target.name)
        unfinished.mkdir()
        yield unfinished
        unfinished.replace(target)


def write_figure(path: Path, figure: "Figure", dpi: int):
    """Writes a matplotlib figure as a PNG file."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dpi)
    atomic_write(path, picture.getvalue())
