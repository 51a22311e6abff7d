"""Figures of recipes as pictures in a page."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figure_html"]

DPI = 96  # of a page


def figure_html(figure: Figure, alt: str, sharpness: int = 2) -> str:
    """A figure as an image element: as wide as drawn, smaller where the page is narrower.

    Args:
        figure: Which is drawn as PNG: its crops of pictures keep their pixels.
        alt: What it shows, for those who cannot see it.
        sharpness: Pixels of the picture to one of the page.
    """
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI * sharpness)
    width, height = (round(DPI * inches) for inches in figure.get_size_inches())
    address = base64.b64encode(file.getvalue()).decode("ascii")
    return (
        f'<img src="data:image/png;base64,{address}" alt="{html.escape(alt)}" width="{width}" height="{height}" '
        'style="max-width: 100%; height: auto; border-radius: 6px">'
    )
