"""Parts shared by the data set readers: layouts, image folders, lists, source groups and fingerprint."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.safe_readers import read_npy
from benchmarks.task import InputError, Labels
from results.files import PathList, make_folder, read_bytes, read_text, require_regular, require_size, write_file

log = logging.getLogger(__name__)

# Maps an item's id to the names of its sources; optional, in the folder of a data set.
GROUPS_FILE = "groups.json"
REMEMBERED_FROM = 100_000  # files, whose sizes are remembered; fewer are asked for each time
LOOKED_AT = 1000  # of the files whose sizes are remembered
MAX_CLASSES = 1_000_000  # of a list that only numbers them

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
_ENTRIES_SHOWN = 6
# An image of CIFAR-10 or -100, which lies in a batch file with others: `data_batch_1#17`, `train#17`. And one of
# STL-10, SVHN or PatchCamelyon, whose splits are one file each.
_BATCH_MEMBER = re.compile(
    r"((data|test)_batch(_\d)?(\.bin)?|train|test|(train|test)_X\.bin|(train|test)_32x32\.mat"
    r"|camelyonpatch_level_2_split_(train|valid|test)_x\.h5)#\d+"
)

Listed = tuple[list[str], NDArray[np.int64]]  # names with forward slashes, labels


# ---- the layout of a data set's folder -------------------------------------------------------------------------------


@dataclass(frozen=True)
class FolderLayout:
    """One way to store a split below the data set's folder.

    Attributes:
        description: shown to people; `{split}` stands for the split.
        fits: whether the folder has the split in this layout, judged by a few names.
        read: the items. Raises InputError for a missing or malformed file.
    """

    description: str
    fits: Callable[[Path, str], bool]
    read: Callable[[Path, str], Labels]


@dataclass(frozen=True)
class FolderLayouts:
    """The layouts in which a data set is found, in the order in which they are tried.

    Attributes:
        owner: who publishes the data set, for error messages.
    """

    owner: str
    layouts: tuple[FolderLayout, ...]

    def find(self, folder: Path, split: str) -> FolderLayout | None:
        """The first layout that fits."""
        return next((layout for layout in self.layouts if layout.fits(folder, split)), None)

    def read(self, folder: Path, split: str) -> Labels:
        """The items of a split in the first layout that fits, sorted by id.

        Raises:
            InputError: no layout fits, or a list, an image or a label is wrong.
        """
        layout = self.find(folder, split)
        if layout is None:
            expected = ", or ".join(each.description.replace("{split}", split) for each in self.layouts)
            raise InputError(
                f"{folder} has no split {split}: expected {expected}; found {folder_contents(folder)}; "
                f"unpack the files of {self.owner} there"
            )
        log.info("%s: %s has the layout %s", folder, split, layout.description.replace("{split}", split))
        return layout.read(folder, split)


def folder_contents(folder: Path) -> str:
    """The first entries of a folder, for an error message."""
    if not folder.is_dir():
        return "no such folder"
    names = sorted(entry.name + "/" * entry.is_dir() for entry in os.scandir(folder))
    more = f" and {len(names) - _ENTRIES_SHOWN} more" if len(names) > _ENTRIES_SHOWN else ""
    return (", ".join(names[:_ENTRIES_SHOWN]) + more) or "nothing"


def first_file(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of the files that exists."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def first_folder(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of the folders that exists."""
    return next((folder / name for name in names if (folder / name).is_dir()), None)


# ---- image folders ---------------------------------------------------------------------------------------------------


def read_image_folder(root: Path, split: str) -> Labels:
    """Items of one split of `<root>/<split>/<class>/<image>`, sorted by class and file; an id is the path below `root`.

    Class indices are those of `train` if there is such a folder, so that a split may lack a class.

    Raises:
        InputError: a folder is missing or empty, or the split has a class that `train` does not have.
    """
    folder = root / split
    found = _require_class_folders(folder)
    classes = _require_class_folders(root / "train") if split != "train" and (root / "train").is_dir() else found
    unknown = sorted(set(found) - set(classes))
    if unknown:
        raise InputError(
            f"{folder / unknown[0]} is a class that {root / 'train'} does not have; the folders must match"
        )
    if len(classes) == 1:
        log.warning(
            "%s has only one class, %s: every accuracy is 100 %%; an image folder has the layout "
            "<root>/<split>/<class>/<image>", folder, classes[0],
        )  # fmt: skip
    index = {name: number for number, name in enumerate(classes)}
    ids: list[str] = []
    counts: list[int] = []
    for name in found:
        images = images_below(folder / name)
        if not images:
            raise InputError(f"{folder / name} contains no image ({', '.join(SUFFIXES)}); fill or remove the folder")
        prefix = f"{split}/{name}/"
        ids += [prefix + image for image in images]
        counts.append(len(images))
    targets = np.repeat(np.array([index[name] for name in found], dtype=np.int64), counts)
    return labels_below(root, ids, classes, targets)


def class_folders(folder: Path) -> list[str]:
    """Sorted names of the subfolders that may be classes; empty if `folder` does not exist."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def has_classes(folder: Path) -> bool:
    """Whether a subfolder directly contains an image. Those of Places, which are sorted by initial, do not."""
    for name in class_folders(folder):
        with os.scandir(folder / name) as entries:
            if any(entry.name.lower().endswith(SUFFIXES) for entry in entries):
                return True
    return False


def _require_class_folders(folder: Path) -> list[str]:
    names = class_folders(folder)
    if not names:
        fault = "has no class folders" if folder.is_dir() else "is missing"
        raise InputError(f"{folder} {fault}: an image folder has the layout <root>/<split>/<class>/<image>")
    return names


def images_below(folder: Path) -> list[str]:
    """Images below `folder`, at any depth, in the order of their paths' parts.

    Raises:
        InputError: a link points to a folder that contains it.
    """
    found: list[str] = []
    pending = [""]
    while pending:
        below = pending.pop()
        with os.scandir(folder / below) as entries:
            for entry in entries:
                name = entry.name
                if name.lower().endswith(SUFFIXES) and not name.startswith(".") and not entry.is_dir():
                    found.append(below + name)
                elif entry.is_dir():
                    if entry.is_symlink() and (folder / below).resolve().is_relative_to(Path(entry.path).resolve()):
                        raise InputError(f"{entry.path} is a link to a folder that contains it; remove the link")
                    pending.append(f"{below}{name}/")
    nested = any("/" in name for name in found)
    return sorted(found, key=lambda name: name.split("/")) if nested else sorted(found)


# ---- lists of images -------------------------------------------------------------------------------------------------


def read_lines(file: Path) -> list[str]:
    """The lines that are not blank, stripped.

    Raises:
        InputError: the file does not exist, is not text, or has no line.
    """
    try:
        text = read_text(file)
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing; put the list there") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not a text file; restore the list") from error
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    if not lines:
        raise InputError(f"{file} lists no image; restore it")
    return lines


def read_list(file: Path) -> Listed:
    """Names and labels of a text list, as mm and Places have them: one name and one label per line.

    Names and labels are separated by white space or a comma. The order is that of the file.

    Raises:
        InputError: the file does not exist or has no line, or a line is malformed or repeated.
    """
    lines = read_lines(file)
    separator = "," if "," in lines[0] else None
    names: list[str] = []
    targets = np.empty(len(lines), dtype=np.int64)
    for row, line in enumerate(lines):  # zip(*…) over a million lines keeps the garbage collector busy for seconds
        try:
            name, label = line.rsplit(separator, 1)
            targets[row] = int(label)
        except (ValueError, OverflowError) as error:
            raise InputError(
                f"{file} line {row + 1}: expected a path and a label, found {line[:200]!r}; restore the list"
            ) from error
        names.append(name)
    if separator or lines[0][0] == "/":
        names = [name.strip().lstrip("/") for name in names]
    require_unique(file, names)
    return names, targets


def read_arrays(images: Path, labels: Path) -> Listed:
    """Names and labels of VISSL's pair of `.npy` files.

    Raises:
        InputError: a file is missing or not such an array, or the arrays differ in length.
    """
    remedy = "VISSL's lists are a pair of .npy files, of paths and of labels"
    names, targets = read_npy(images, remedy), read_npy(labels, remedy)
    if names.dtype.kind == "S":
        names = np.char.decode(names, "utf-8")
    if names.dtype.kind != "U" or names.ndim != 1 or not len(names):
        raise InputError(
            f"{images} must hold a list of paths, got {names.dtype} of shape {names.shape}; write it as text"
        )
    if targets.dtype.kind not in "iu" or targets.size != len(names):
        raise InputError(
            f"{labels} holds {targets.size} labels of type {targets.dtype} for the {len(names)} paths of "
            f"{images.name}; write one whole number per path"
        )
    listed = names.tolist()
    require_unique(images, listed)
    return listed, targets.reshape(-1).astype(np.int64)


def class_names(source: Path, names: Sequence[str], targets: NDArray[np.int64]) -> list[str]:
    """Class names of a list: the folder of each label's images, or the number for images outside of any folder.

    Raises:
        InputError: a label has images in two folders or is absurd, or a folder has images of two labels.
    """
    folder_of: dict[int, str] = {}
    for name, target in zip(names, targets.tolist(), strict=True):
        where = name.rpartition("/")[0]
        if folder_of.setdefault(target, where) != where:
            raise InputError(
                f"{source} gives images of {folder_of[target]} and of {where} the label {target}; restore the list"
            )
    count = class_count(source, targets)
    folders = sorted(set(folder_of.values()))
    if folders == [""]:
        return [str(number) for number in range(count)]
    if len(folders) < len(folder_of):
        twice = next(name for name in folders if list(folder_of.values()).count(name) > 1)
        raise InputError(f"{source} gives images of {twice} several labels; restore the list")
    return [folder_of.get(number, str(number)) for number in range(count)]


def class_count(source: Path, targets: NDArray[np.int64]) -> int:
    """The number of classes of a list that only numbers them, from 0 on.

    Raises:
        InputError: a number is far above those of any data set, so that memory for all classes would be too much.
    """
    highest = int(targets.max(initial=-1))
    if highest >= MAX_CLASSES:
        raise InputError(f"{source} has the label {highest}, more than {MAX_CLASSES:,} classes; restore the list")
    return highest + 1


def sorted_labels(
    source: Path, folder: Path, ids: Sequence[str], names: Sequence[str], targets: NDArray[np.int64], classes: list[str]
) -> Labels:
    """The items sorted by id. `names` are relative to `folder`, which may also hold a `groups.json`.

    Raises:
        InputError: a label is not the index of a class.
    """
    outside = np.flatnonzero((targets < 0) | (targets >= len(classes)))
    if len(outside):
        raise InputError(
            f"{source} gives {names[outside[0]]} the label {targets[outside[0]]} ({len(outside)} such), but there are "
            f"{len(classes)} classes, numbered from 0; restore the list"
        )
    sorted_ids = tuple(sorted(ids))
    sorted_names: Sequence[str] = sorted_ids if names is ids else names
    if list(ids) != list(sorted_ids):
        order = sorted(range(len(ids)), key=ids.__getitem__)
        targets = targets[np.array(order)]
        sorted_names = sorted_ids if names is ids else [names[row] for row in order]
    return labels_below(folder, sorted_names, classes, targets, ids=sorted_ids)


def require_unique(source: Path, names: Sequence[str]) -> None:
    """Raise InputError if a name occurs twice."""
    if len(set(names)) == len(names):
        return
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{source} lists {name} twice; restore the list")
        seen.add(name)


def require_files(folder: Path, names: Sequence[str], source: Path | str, remedy: str) -> None:
    """Check that every file below `folder` exists, with one listing per folder.

    Args:
        source: the list that names the files, for the message.

    Raises:
        InputError: some do not exist.
    """
    by_folder: dict[str, list[str]] = defaultdict(list)
    for name in names:
        where, _, file = name.rpartition("/")
        by_folder[where].append(file)
    missing: list[str] = []
    for where, files in by_folder.items():
        try:
            present = set(os.listdir(folder / where))  # noqa: PTH208 - a million Paths are slow
        except (OSError, ValueError):  # no such folder, or a name that cannot be one
            present = set()
        if not present.issuperset(files):
            missing += [f"{where}/{file}" if where else file for file in files if file not in present]
    if missing:
        raise InputError(
            f"{folder} lacks {len(missing)} of the {len(names)} images of {source}, first {missing[0]}; {remedy}"
        )


# ---- paths -----------------------------------------------------------------------------------------------------------


def path_strings(paths: Sequence[Path]) -> Iterator[str]:
    """The paths as text."""
    return paths.strings() if isinstance(paths, PathList) else map(str, paths)


def batch_file(path: str) -> str | None:
    """The batch file of CIFAR-10 or another set that holds this image, or None for an image in a file of its own."""
    file, mark, _ = path.rpartition("#")
    return file if mark and _BATCH_MEMBER.fullmatch(path.rpartition("/")[2]) else None


# ---- source groups and fingerprint -----------------------------------------------------------------------------------


def read_groups(folder: Path, ids: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Source ids of each item, from the folder's `groups.json`. Without that file every item is its own source.

    Raises:
        InputError: the file is not a mapping of ids to lists of names, or lacks an item.
    """
    file = folder / GROUPS_FILE
    if not file.is_file():
        return tuple((id,) for id in ids)
    try:
        groups = json.loads(read_bytes(file))
        return tuple(tuple(map(str, groups[id])) for id in ids)
    except KeyError as error:
        raise InputError(f"{file} does not list {error.args[0]}; complete it, or remove the file") from error
    except RecursionError as error:
        raise InputError(f"{file} is nested too deeply; repair or remove it") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{file} is not a JSON object of lists ({error}); repair or remove it") from error


def labels_below(
    folder: Path,
    names: Sequence[str],
    classes: Sequence[str] = (),
    targets: NDArray[Any] | None = None,
    *,
    ids: Sequence[str] | None = None,
    groups_in: Path | None = None,
    annotations: Sequence[Path] = (),
) -> Labels:
    """The items whose images have these names below `folder`, with the sources that `groups.json` names.

    Args:
        targets: None where only the annotations hold labels.
        ids: the names themselves by default.
        groups_in: the folder of `groups.json` where it is not `folder`.

    Raises:
        InputError: see `read_groups`.
    """
    names = tuple(names)
    fixed = names if ids is None else tuple(ids)
    if targets is None:
        targets = np.zeros((len(names), 0), np.int8)
    groups = read_groups(groups_in or folder, fixed)
    return Labels(fixed, PathList(folder, names), tuple(classes), targets, groups, tuple(annotations))


def fingerprint(labels: Labels) -> str:
    """SHA-256 over ids, classes, targets and file sizes, in the order of the items. Records name their data by it.

    Image files are not opened: their sizes stand for them. The contents of annotations (masks, boxes) and of batch
    files, which hold many images each, are hashed too. The sizes of large sets are remembered, see `_file_sizes`.

    It is computed once for each object: a run asks for it a dozen times, and all its parts must agree.

    Raises:
        InputError: a listed file is missing or not a regular file, or a name is not UTF-8.
    """
    kept = vars(labels)  # where a cached_property keeps its value
    if "_fingerprint" not in kept:
        kept["_fingerprint"] = _fingerprint(labels)
    return str(kept["_fingerprint"])


def _fingerprint(labels: Labels) -> str:
    digest = hashlib.sha256()
    for names in (labels.ids, labels.classes):
        digest.update(f"{len(names)}\n".encode())
        try:
            digest.update("\n".join(names).encode())
        except UnicodeEncodeError as error:
            strange = next(name for name in names if escape_non_utf8(name) != name)
            raise InputError(
                f"the name {escape_non_utf8(strange)} is not UTF-8; rename the file or folder, and correct its "
                "list if there is one"
            ) from error
    targets = np.ascontiguousarray(labels.targets)
    digest.update(f"{targets.dtype.str}{targets.shape}".encode())
    digest.update(targets.tobytes())
    batches: dict[str, int] = {}  # batch file -> its size
    try:
        sizes = _file_sizes(list(path_strings(labels.paths)), batches)
        digest.update(sizes.tobytes())
        for annotation in labels.annotations:
            require_size(annotation)
        for content in (*map(Path, batches), *labels.annotations):
            require_regular(content)
            with content.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} does not exist; restore it or leave it out of the lists") from error
    return digest.hexdigest()


def _file_sizes(paths: list[str], batches: dict[str, int]) -> NDArray[np.int64]:
    """Sizes in bytes of the files, in their order; those of batch files are also put into `batches`.

    A network file system takes minutes to tell a million sizes. Those of `REMEMBERED_FROM` and more files are therefore
    kept in the user's cache folder, under the names of the files and the times at which their folders changed: adding,
    removing or renaming a file counts as a change, and so does another size of one of `LOOKED_AT` files drawn anew. A
    file rewritten in its place is found only if it is drawn; remove the cache folder after such a change.

    Raises:
        InputError: a file is not a regular one.
        FileNotFoundError: it is missing.
    """
    if len(paths) < REMEMBERED_FROM or "#" in paths[0]:
        return _sizes_by_asking(paths, batches)
    memory, settled = _memory_of_sizes(paths)
    try:
        kept = memory.read_bytes()
    except OSError:
        kept = b""
    if len(kept) == 32 + 8 * len(paths) and hashlib.sha256(kept[32:]).digest() == kept[:32]:
        sizes = np.frombuffer(kept, "<i8", offset=32)
        drawn = np.random.default_rng().choice(len(paths), LOOKED_AT, replace=False)
        if np.array_equal(_sizes_by_asking([paths[number] for number in drawn], {}), sizes[drawn]):
            return sizes
    sizes = _sizes_by_asking(paths, batches)
    if settled:
        try:
            make_folder(memory.parent)
            write_file(memory, hashlib.sha256(sizes.tobytes()).digest() + sizes.tobytes())
        except (InputError, OSError) as error:
            log.info("the sizes of %d files are not remembered: %s", len(paths), error)
    return sizes


def _memory_of_sizes(paths: list[str]) -> tuple[Path, bool]:
    """Where the sizes of these files are kept, and whether their folders have been at rest for some seconds."""
    digest = hashlib.sha256("\n".join(paths).encode(errors="surrogatepass"))
    newest = 0
    for folder in sorted({path.rpartition("/")[0] for path in paths}):
        changed = os.stat(folder).st_mtime_ns  # noqa: PTH116 - there are as many as classes
        newest = max(newest, changed)
        digest.update(f"{changed}\n".encode())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "encoder-bench" / "sizes" / digest.hexdigest(), newest < time.time_ns() - 5_000_000_000


def _sizes_by_asking(paths: Sequence[str], batches: dict[str, int]) -> NDArray[np.int64]:
    sizes = np.empty(len(paths), dtype="<i8")
    for row, path in enumerate(paths):
        batch = batch_file(path) if "#" in path else None
        if batch is None:
            found = os.stat(path)  # noqa: PTH116 - a million Paths are slow
            if not stat.S_ISREG(found.st_mode):
                raise InputError(f"{path} is not a regular file; remove it or leave it out of the lists")
            sizes[row] = found.st_size
        else:
            if batch not in batches:
                batches[batch] = Path(batch).stat().st_size
            sizes[row] = batches[batch]
    return sizes


def escape_non_utf8(text: str) -> str:
    """The text with what is not UTF-8 (in a file name, or half a character in JSON) as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()
