"""Lets the torchvision of PyPI be imported beside a CPU build of torch. For test set-up only.

Its compiled operators do not load there, and its import fails on the two whose fake kernels it registers. Declaring
their schemas is enough: the transforms and the models that the zoo needs never call them.
"""

from __future__ import annotations

import importlib.util

import torch

SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library: torch.library.Library | None = None  # operators live as long as the object that declares them


def declare_operators() -> None:
    """Declare what torchvision's import asks for, if torchvision is installed and they are missing."""
    global _library  # noqa: PLW0603
    if _library is not None or importlib.util.find_spec("torchvision") is None:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + schema)
    _library = library
