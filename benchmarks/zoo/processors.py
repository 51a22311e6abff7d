"""Real processors of transformers, with small sizes, built without a download."""

from __future__ import annotations

from typing import Any

from zoo.pair import Made, Pair
from zoo.tokens import tokenizer

__all__ = ["processor"]


def processor(pair: Pair, *, backend: str | None = None) -> Any:
    """The processor of a pair.

    Args:
        pair: What to build.
        backend: ``"pil"`` for the image processor's version on Pillow; its usual one if None.

    Raises:
        ValueError: If there is no image processor of that backend.
    """
    import transformers

    def build(made: Made) -> Any:
        return getattr(transformers, made.kind)(**made.settings)

    parts = {
        name: tokenizer() if made.kind == "tokenizer" else build(made)
        for name, made in pair.parts.items()
    }
    parts["image_processor"] = build(_backed(pair.image, backend))
    if pair.template is not None:
        parts["chat_template"] = pair.template.replace("PLACE", pair.place)
    kind = getattr(transformers, pair.processor.kind)
    made = kind(
        tokenizer=tokenizer(pair.names, first=pair.first), **parts, **pair.processor.settings
    )
    for name, value in pair.defaults.items():
        setattr(made, name, value)
    return made


def _backed(made: Made, backend: str | None) -> Made:
    if backend is None:
        return made
    import transformers

    if backend != "pil" or not hasattr(transformers, made.kind + "Pil"):
        raise ValueError(
            f"transformers has no {made.kind} of the backend {backend!r}: take None, its usual one"
        )
    return Made(made.kind + "Pil", made.settings)
