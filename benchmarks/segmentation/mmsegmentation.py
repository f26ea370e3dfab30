"""mmsegmentation itself: whether it is there, its registries, and the device that it works on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from importlib.util import find_spec
from io import StringIO

from benchmarks.contract import InputError
from benchmarks.segmentation import backbone, scenes

_REMEDY = "run `make setup-transfer`"


def require_library() -> None:
    """Raises InputError where mmsegmentation is not installed, or is one that does not go with this torch."""
    missing = [name for name in ("mmengine", "mmcv", "mmseg") if not find_spec(name)]
    if missing:
        raise InputError(
            f"segmentation needs mmsegmentation, and {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not "
            f"installed; {_REMEDY}"
        )
    try:
        register()
    except (ImportError, AssertionError, AttributeError) as error:  # of versions that do not go together
        raise InputError(f"mmsegmentation is installed and cannot be imported ({error}); {_REMEDY}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the libraries say on every run: of operators that no FCN has, and of their own old arguments."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        yield


@cache
def register() -> None:
    """Imports mmsegmentation, whose models and transforms the registries then find, and adds this harness's own."""
    with quiet():
        from mmengine.logging import MMLogger
        from mmengine.registry import init_default_scope
        from mmseg.utils import register_all_modules

        register_all_modules(init_default_scope=False)
        init_default_scope("mmseg")
        MMLogger.get_instance("mmengine", log_level="ERROR")  # at its own level it lists every tensor's initialisation
    backbone.register()
    scenes.register()


def use_device(kind: str) -> None:
    """mmengine takes the accelerator that it finds unless it is told otherwise, in this one place."""
    import mmengine.device.utils as found

    found.DEVICE = kind
