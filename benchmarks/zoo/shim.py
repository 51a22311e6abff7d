"""For tests and benchmarks only: transformers' torchvision-based processors beside a CPU wheel of torch.

A third of transformers' image processors, and every video processor, are built on ``torchvision.transforms``. A wheel
of torchvision is compiled against one wheel of torch; where they do not fit, its import fails because the operators of
its compiled part are missing. The transforms need none of them: it is enough that their schemas are known.

The product never imports this. ``make setup`` puts torchvision into ``.venv/extras``, where Python does not look,
so that whatever does not call :func:`install` runs as if there were none.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

__all__ = ["FOLDER", "SCHEMAS", "install"]

FOLDER = Path(sys.prefix) / "extras"
"""Where ``make setup`` puts torchvision, and the pure-Python packages that some processors and encoders ask for."""

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
"""Operators that torchvision adds a fake kernel to while it is imported: without them it cannot be."""

_libraries: list[object] = []  # a library's definitions last as long as it does


def install() -> None:
    """Make torchvision importable, and known to transformers. A second call does nothing.

    Raises:
        RuntimeError: If torchvision is nowhere, or transformers has already decided that there is none.
    """
    if "torchvision" not in sys.modules:
        _import()
    from transformers.utils import is_torchvision_available

    if not is_torchvision_available():
        raise RuntimeError(
            "transformers was imported before torchvision could be, and has no processors that need it: call "
            "zoo.shim.install() first, in a fresh interpreter"
        )


def _import() -> None:
    if "transformers" in sys.modules and importlib.util.find_spec("torchvision") is None:
        raise RuntimeError(
            "transformers is already imported, without torchvision: call zoo.shim.install() first, "
            "in a fresh interpreter"
        )
    import torch

    if importlib.util.find_spec("torchvision") is None:
        if not (FOLDER / "torchvision").is_dir():
            raise RuntimeError(f"there is no torchvision in {FOLDER}: run make setup")
        sys.path.append(str(FOLDER))
    # Where its compiled part does not load, the import ends in "operator torchvision::nms does not exist".
    try:
        import torchvision
    except RuntimeError:
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for schema in SCHEMAS:
            library.define(schema)
        _libraries.append(library)
        import torchvision  # noqa: F401
