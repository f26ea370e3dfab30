"""Open image files of data sets: regular files of a known format and size, whatever their name claims."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow reads many more, and starts Ghostscript for one of them (EPS). JPEG includes the multi-picture MPO.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
MAX_PIXELS = 100_000_000  # decoded and converted, 800 MB; the largest image of ImageNet has 61 million


def open_image(file: Path | bytes) -> Image:
    """The image of a path or of a file's bytes, not yet decoded; a context manager, as `PIL.Image.open`.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: not a regular file (reading a named pipe would wait for ever), or an image of too many pixels.
        PIL.UnidentifiedImageError: an unknown format.
    """
    from PIL import Image

    if not isinstance(file, bytes):
        require_regular(file)
    image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise OSError(f"{width} by {height} pixels are more than {MAX_PIXELS:,}; scale it down")
    return image


def require_regular(file: Path | str) -> None:
    """Check that a path is a file with content, not a folder, a named pipe or a device.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is something else.
    """
    if not stat.S_ISREG(os.stat(file).st_mode):  # noqa: PTH116 - called for every image
        raise OSError(errno.EINVAL, "not a regular file", str(file))
