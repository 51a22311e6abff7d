"""Which way relevance can take from the words to the pixels of this very sequence, as far as it was captured."""

from __future__ import annotations

from dataclasses import dataclass

from lvlm_probe.recipe import Context

__all__ = ["Route", "find_route"]


@dataclass(frozen=True, slots=True)
class Route:
    """The towers that relevance goes through.

    Attributes:
        towers: In the order of a backward pass.
        kept: Those whose calls are kept until all of them are there.
        crosses: Whether the language model attends across.
    """

    towers: tuple[str, ...]
    kept: tuple[str, ...]
    crosses: bool


def find_route(context: Context, *, vision: bool) -> Route:
    """The way through every tower that leads on.

    Args:
        context: What was captured; before the forward pass, what will be.
        vision: Whether to go on into the vision encoder where :func:`reaches_patches`.
    """
    crosses = _crosses(context, "language") or "encoder" in context.depth
    towers, kept = ["language"], list[str]()
    if crosses:
        kept.append("language")
        if "encoder" in context.depth:
            towers.append("encoder")
    if vision and reaches_patches(context):
        if context.layout.has_queries and "projector" in context.depth:
            towers.append("projector")
        towers.append("vision")
    if crosses:
        kept = towers.copy()
    elif "projector" in towers:
        kept = ["projector", "vision"]
    return Route(tuple(towers), tuple(kept), crosses)


def reaches_patches(context: Context) -> bool:
    """Whether what follows the vision encoder hands relevance on to its patches, and each layer of it keeps them."""
    layout = context.layout
    if (
        "vision" not in context.depth
        or not layout.images
        or not all(span.patches for span in layout.images)
    ):
        return False
    sizes = context.sizes
    own = {size for name, size in sizes.items() if name.startswith("vision.")}
    if sizes and own != {(layout.patch_count, layout.patch_count)}:
        return False  # windows, pooling or several encoders: positions are not the same all through
    if not layout.has_queries:
        # A tile of tokens for each tile of patches.
        return all(len(span.tokens) == len(span.patches) for span in layout.images)
    if _crosses(context, "language") and "encoder" not in context.depth:
        across = {
            keys for n, (_, keys) in sizes.items() if n.startswith("language.") and _is_across(n)
        }
        if "projector" not in context.depth:
            return across <= {layout.patch_count}
        return len(across) < 2 and _gathers(context, sum(across))
    return _gathers(context, sum(span.stop - span.start for span in layout.images))


def _gathers(context: Context, tokens: int) -> bool:
    """Whether the projector's queries are so many tokens, and its keys the patches."""
    names = [name for name in context.sites if name.startswith("projector.")]
    if not names:
        return False
    if not context.sizes:
        return True
    patches = context.layout.patch_count
    for name in names:
        queries, keys = context.sizes[name]
        if _is_across(name):
            fits = (queries, keys) == (tokens, patches)
        else:
            # Queries among themselves, with a question's words perhaps; or with the patches beside them.
            fits = queries >= tokens and keys in (queries, queries + patches)
        if not fits:
            return False
    return any(
        _is_across(name) or context.sizes[name][0] != context.sizes[name][1] for name in names
    )


def _crosses(context: Context, tower: str) -> bool:
    return any(name.startswith(f"{tower}.") and _is_across(name) for name in context.sites)


def _is_across(site: str) -> bool:
    return site.endswith(".cross_attention")
