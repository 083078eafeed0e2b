# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all."""

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def atomic_write(path: Path, content: bytes):
    """Writes a file, and its folder where there is none. An interruption leaves what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)


def write_figure(path: Path, figure: "Figure", dpi: int):
    """Writes a matplotlib figure as a PNG file."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dpi)
    atomic_write(path, picture.getvalue())
