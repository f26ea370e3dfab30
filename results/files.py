"""Files: written atomically, folders locked, and images of data sets opened only in known formats and sizes.

A reader, or a process killed at any moment, leaves the old file or the new one, never a part.
"""

from __future__ import annotations

import errno
import io
import os
import secrets
import stat
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, overload

from results.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

LOCK = "run.lock"
# Pillow reads many more, and starts Ghostscript for one of them (EPS). JPEG includes the multi-picture MPO.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
MAX_PIXELS = 100_000_000  # decoded and converted, 800 MB; the largest image of ImageNet has 61 million
MAX_PAGE = 1 << 20  # bytes of a page that is compared with records
MAX_TEXT = 1 << 24  # bytes of a log, a README or a list of questions
MAX_LIST = 1 << 32  # bytes of a list or an annotation of a data set; the largest, of LVIS, has 2**30
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of an OSError


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Create the folder and hold it for this process alone. The end of the process frees it, whatever ends it.

    The lock is `lockf`'s: forked loader workers, which outlive a killed parent for seconds, do not hold it.

    Raises:
        InputError: another process holds the folder.
        OSError: the folder cannot be written.
    """
    import fcntl  # not on Windows, where this module is read for other things

    make_folder(folder)
    with (folder / LOCK).open("a+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{folder} is in use by another run; wait for its end, or choose another --out") from error
        yield


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; the file written there replaces `path` when the block ends without an error.

    The file is on disk (fsync) before it takes the name. A killed process leaves `.*.partial`, see `remove_partials`.

    Raises:
        OSError: the file cannot be written; the error names `path`, and nothing has changed.
    """
    with _naming(path):
        if path.is_dir():
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        make_folder(path.parent)
        temporary = _temporary(path)
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)  # noqa: PTH105 - tests make os.replace fail
        finally:
            temporary.unlink(missing_ok=True)


def write_file(path: Path, content: bytes | str) -> None:
    """Write a whole file atomically; text as UTF-8. A device or named pipe (/dev/stdout) is written to directly.

    Raises:
        OSError: see `replacing`.
    """
    data = content.encode() if isinstance(content, str) else content
    if path.exists() and not path.is_file() and not path.is_dir():
        with _naming(path):
            path.write_bytes(data)
        return
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_pair(path: Path, text: bytes, side_name: str | None, side: bytes | None) -> None:
    """Write a file and its companion, both or neither; then remove older companions and temporary files of `path`.

    Args:
        side_name: name of the companion `<stem>.<hash>.npz` in the same folder; None if the file has none.
        side: content of the companion; None if it already exists.

    Raises:
        OSError: see `replacing`.
    """
    side_path = None if side_name is None else path.with_name(side_name)
    side_existed = side_path is not None and side_path.exists()
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(text)
            if side_path is not None and side is not None:
                write_file(side_path, side)  # in its place before the file that names it
    except BaseException:
        if side_path is not None and not side_existed:
            side_path.unlink(missing_ok=True)
        raise
    for old in path.parent.glob(f"{path.stem}.*.npz"):
        if old != side_path:
            old.unlink(missing_ok=True)
    for each in (path, side_path or path):
        remove_partials(path.parent, each)
    if os.name == "posix":  # the new names are on disk, too
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create a folder with its parents.

    Raises:
        NotADirectoryError: the folder or one of its parents is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error


def require_writable_folder(folder: Path, flag: str) -> None:
    """Check that a folder can be made and written: a file is written into it and removed, and so is a new folder.

    Args:
        flag: with which the user chooses another.

    Raises:
        InputError: it cannot.
    """
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        make_folder(folder)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        raise InputError(
            f"cannot write to {folder}: {existing} is not a writable folder ({error.strerror}); choose another with "
            f"{flag}"
        ) from error
    finally:
        for parent in missing:
            with suppress(OSError):  # never made, or in use by another run since
                parent.rmdir()


def remove_partials(folder: Path, path: Path | None = None) -> None:
    """Remove the temporary files that killed processes left in a folder, of all files or of `path` alone."""
    for partial in folder.glob(".*.partial" if path is None else f".*.{_tail(path)}.partial"):
        partial.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{secrets.token_hex(8)}.{_tail(path)}.partial")


def _tail(path: Path) -> str:
    return path.stem[-8:]  # a record's key; short, because the whole name may be as long as a file system allows


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Raise errors about `path`, its folders or its temporary file as errors about `path`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save raises a RuntimeError while it handles the disk's OSError.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError) or cause.errno is None:
            raise
        if cause.filename is not None:
            about = Path(cause.filename)
            if about.parent != path.parent and about not in path.parents:
                raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error


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


def read_bytes(file: Path, most: int = MAX_LIST) -> bytes:
    """The content of a file that may be anybody's.

    Raises:
        OSError: see `require_size`.
    """
    require_size(file, most)
    return file.read_bytes()


def require_size(file: Path, most: int = MAX_LIST) -> None:
    """Check that a path is a file with content, of which all can be read.

    Raises:
        OSError: not a regular file, or one of more than `most` bytes.
    """
    require_regular(file)
    size = file.stat().st_size
    if size > most:
        raise OSError(errno.EFBIG, f"it has {size:,} bytes, more than {most:,}", str(file))


def read_text(file: Path, most: int = MAX_LIST) -> str:
    """The UTF-8 text of a file, with a single character at the end of every line; see `read_bytes`.

    Raises:
        OSError: see `read_bytes`.
        UnicodeDecodeError: it is no text.
    """
    return read_bytes(file, most).decode().replace("\r\n", "\n").replace("\r", "\n")


class PathList(Sequence[Path]):
    """`folder / name` for every name, as one buffer of bytes with offsets; a Path is made when it is asked for.

    1.28 million Paths would take 0.6 GB, and every loader worker would copy the pages of those that it looks at.

    Args:
        names: relative to `folder`, with forward slashes.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        encoded = [f"{name}\n".encode(errors="surrogatepass") for name in names]
        self.folder, self.names = folder, b"".join(encoded)
        self._ends = array("q", accumulate(map(len, encoded)))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> PathList: ...
    def __getitem__(self, index: int | slice) -> Path | PathList:
        if isinstance(index, slice):
            return PathList(self.folder, (self._name(each) for each in range(*index.indices(len(self)))))
        return self.folder / self._name(range(len(self))[index])

    def _name(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return self.names[start : self._ends[index] - 1].decode(errors="surrogatepass")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PathList) and (self.folder, self.names) == (other.folder, other.names):
            return self._ends == other._ends
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # it equals a tuple, whose hash would need all Paths

    def strings(self) -> Iterator[str]:
        """The paths as text, several times faster than through Path."""
        start = os.path.join(self.folder, "")  # noqa: PTH118 - Path drops the separator at the end
        return (start + self._name(index) for index in range(len(self)))
