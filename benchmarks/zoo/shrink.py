"""Any configuration made tiny: the same architecture, its widths, depths and vocabulary cut down.

The default configuration of a class is turned into a tree of plain dictionaries, one a part (text model, vision
encoder, Q-Former, …). Each field is looked up by name in :data:`SIZES`; layers are *picked* out of the default
stack, so that every list with one entry a layer (kinds of attention, dense or sparse, with or without rotary
embedding) stays true to it; special tokens move below the vocabulary's end, equal ones staying equal. What no rule
can know stands in :mod:`zoo.overrides`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

VOCABULARY = 512
TEXT_WIDTH = 64
OTHER_WIDTH = 48
"""Vision encoders, Q-Formers, audio encoders: three heads of 16, where text has four."""
FIRST_SPECIAL = 400
"""Special tokens that do not fit are numbered from here on; ordinary words lie below."""

DEPTHS = (
    "num_hidden_layers", "depth", "layers", "num_layers", "n_layers", "encoder_layers",
    "decoder_layers", "num_decoder_layers",
)  # fmt: skip
LAYERS = 4
"""Four are enough for a pattern of two kinds, twice, and for a feature layer of −2 with layers on both sides."""

# Name of a field: (in a text model, elsewhere). A value is never raised above its default.
SIZES: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("hidden_size", "d_model", "embed_dim"), (TEXT_WIDTH, OTHER_WIDTH)),
    **dict.fromkeys(
        (
            "intermediate_size", "ffn_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "mlp_dim",
            "dense_intermediate_size", "intermediate_size_mlp",
        ), (96, 80),
    ),
    **dict.fromkeys(
        (
            "num_attention_heads", "num_heads", "attention_heads", "encoder_attention_heads",
            "decoder_attention_heads", "swa_num_attention_heads", "num_sliding_attention_heads",
        ), (4, 3),
    ),
    **dict.fromkeys(("head_dim", "d_kv", "swa_head_dim"), (16, 16)),
    # Widths that must be the text model's, wherever they stand.
    **dict.fromkeys(
        (
            "projection_dim", "word_embed_proj_dim", "out_hidden_size", "text_hidden_size",
            "adapter_out_dim", "projector_output_dim",
        ), (TEXT_WIDTH, TEXT_WIDTH),
    ),
    # And those that must be the vision encoder's.
    **dict.fromkeys(
        ("encoder_hidden_size", "adapter_in_dim", "adapter_input_size", "vision_hidden_size"),
        (OTHER_WIDTH, OTHER_WIDTH),
    ),
    # Inside a projector.
    **dict.fromkeys(
        (
            "projector_hidden_size", "projection_hidden_size", "projection_intermediate_size",
            "projection_hidden_dim", "alignment_intermediate_size", "merged_hidden_size",
            "image_text_hidden_size", "projector_input_dim",
        ), (72, 72),
    ),
    # Mixtures of experts.
    **dict.fromkeys(
        ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts"), (4, 4)
    ),
    **dict.fromkeys(
        ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "n_group"), (2, 2)
    ),
    **dict.fromkeys(("topk_group", "n_shared_experts", "moe_num_shared_experts"), (1, 1)),
    **dict.fromkeys(
        (
            "moe_intermediate_size", "shared_expert_intermediate_size", "share_expert_dim",
            "moe_shared_expert_intermediate_size", "shared_intermediate_size", "moe_hidden_size",
            "shared_experts_intermediate_size",
        ), (32, 32),
    ),
    # Latent attention, index attention, state spaces.
    "q_lora_rank": (24, 24), "kv_lora_rank": (16, 16), "v_head_dim": (12, 12),
    "qk_rope_head_dim": (8, 8), "qk_nope_head_dim": (8, 8), "qk_head_dim": (16, 16),
    "index_topk": (8, 8), "index_head_dim": (16, 16), "index_n_heads": (2, 2),
    "linear_num_key_heads": (2, 2), "linear_num_value_heads": (4, 4), "linear_num_heads": (4, 4),
    "linear_key_head_dim": (32, 32), "linear_value_head_dim": (32, 32), "linear_head_dim": (32, 32),
    "mamba_num_heads": (8, 8), "mamba_head_dim": (16, 16), "ssm_state_size": (8, 8),
    "n_groups": (2, 2), "chunk_size": (8, 8),
    "query_pre_attn_scalar": (16, 16),  # a head's width
    # Resamplers.
    **dict.fromkeys(
        (
            "resampler_n_latents", "resampler_num_latents", "num_query_tokens", "latent_query_num",
        ), (6, 6),
    ),
    **dict.fromkeys(("resampler_n_heads", "resampler_heads"), (4, 4)),
    **dict.fromkeys(("resampler_head_dim", "resampler_dim_head"), (16, 16)),
    "resampler_depth": (2, 2),
    # Extents.
    "vocab_size": (VOCABULARY, VOCABULARY),
    "max_position_embeddings": (512, 512),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_chunk_size"), (8, 8)),
    "image_size": (32, 32),
    "patch_size": (8, 8),
    "num_position_embeddings": (64, 64),
    "num_patches": (16, 16),
    **dict.fromkeys(("pos_emb_height", "pos_emb_width"), (8, 8)),
}  # fmt: skip

TOKENS = ("token_id", "token_index", "token_ids", "start_id", "end_id", "patch_id", "newline_id")
"""How the names of fields end that hold special tokens."""
IMAGE_TOKENS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")

# Layer numbers, for encoders of four layers.
INDEXES: dict[str, list[int]] = {
    "fullatt_block_indexes": [1, 3],
    "global_attn_indexes": [1, 3],
    "deepstack_visual_indexes": [0, 2],
}

# Heads of queries, and the name of their heads of keys and values.
HEADS = {
    "num_attention_heads": "num_key_value_heads",
    "num_heads": "num_key_value_heads",
    "swa_num_attention_heads": "swa_num_key_value_heads",
}

Tree = dict[str, Any]


def shrink(
    kind: type[PreTrainedConfig],
    base: Mapping[str, Any],
    parts: Mapping[str, Mapping[str, Any]],
    changes: Mapping[str, Any],
) -> PreTrainedConfig:
    """A tiny configuration of a class.

    Args:
        kind: The configuration's class.
        base: Given to it before anything is cut: a part that it leaves out, another encoder.
        parts: For each model type that may stand somewhere in the tree, values to set there.
        changes: Values to set last, by dotted path from the root.
    """
    tree = kind(**base).to_dict()
    _renumber(tree)
    for path, part in _parts(tree):
        _cut(part, _is_text(path))
        for name, value in parts.get(str(part.get("model_type")), {}).items():
            _put(part, name, value)
    for name, value in changes.items():
        _put(tree, name, value)
    return kind.from_dict(tree)


def _parts(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tree]]:
    yield path, tree
    for name, value in tree.items():
        if isinstance(value, dict) and "model_type" in value:
            yield from _parts(value, (*path, name))


def _is_text(path: tuple[str, ...]) -> bool:
    return not path or path[-1] in {"text_config", "decoder", "dit_config"}


def _put(tree: Tree, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        tree = tree[name]
    tree[last] = deepcopy(value)


def _cut(part: Tree, text: bool) -> None:
    before = dict(part)
    picks = _pick_layers(part)
    for name, default in list(part.items()):
        part[name] = _tiny(name, default, text)
    for name in HEADS:
        _keep_groups(part, before, name)
    _keep_overlays(part, before, picks)


def _tiny(name: str, default: Any, text: bool) -> Any:
    """One field's tiny value; a list of sizes has each of its entries cut."""
    if name in INDEXES and default:
        return list(INDEXES[name])
    size = SIZES.get(name, (None, None))[0 if text else 1]
    if size is None or isinstance(default, bool | None):
        return default
    if isinstance(default, list | tuple):
        return [min(value, size) for value in default]
    return min(default, size) if isinstance(default, int) else default


def _keep_groups(part: Tree, before: Tree, heads: str) -> None:
    """Grouped queries stay grouped: two groups of two heads, or one of three."""
    groups = before.get(HEADS[heads])
    if isinstance(before.get(heads), int) and isinstance(groups, int):
        now = part[heads]
        part[HEADS[heads]] = now if groups == before[heads] else min(groups, now // 2)


def _keep_overlays(part: Tree, before: Tree, picks: list[int]) -> None:
    """What single layers set for themselves, under their new numbers, and as much larger or smaller as it was."""
    found = {int(layer): own for layer, own in (before.get("per_layer_config") or {}).items()}
    if found:
        part["per_layer_config"] = {
            f"{new:02d}": {
                name: max(2, part[name] * value // before[name])
                for name, value in found[old].items()
            }
            for new, old in enumerate(picks)
            if old in found
        }


def _pick_layers(part: Tree) -> list[int]:
    """Which layers of the default stack stay; its lists of one entry a layer follow."""
    picks: list[int] = []
    for name in DEPTHS:
        depth = part.get(name)
        if not isinstance(depth, int):
            continue
        lists = {key: value for key, value in part.items() if _one_a_layer(value, depth)}
        picks = _first_of_runs(list(zip(*map(_marks, lists.values()), strict=True)), depth)
        for key, values in lists.items():
            counting = values == list(range(depth))
            part[key] = list(range(len(picks))) if counting else [values[i] for i in picks]
        part[name] = len(picks)
    return picks


def _one_a_layer(value: Any, depth: int) -> bool:
    return isinstance(value, list) and len(value) == depth > LAYERS


def _marks(values: list[Any]) -> list[Any]:
    counting = values == list(range(len(values)))
    return [None] * len(values) if counting else values


def _first_of_runs(kinds: list[tuple[Any, ...]], depth: int) -> list[int]:
    """The first layers of successive runs of one kind; the last run gives the rest."""
    if not kinds:
        return list(range(min(depth, LAYERS)))
    starts = [i for i in range(depth) if i == 0 or kinds[i] != kinds[i - 1]][:LAYERS]
    more = [i for i in range(starts[-1] + 1, depth) if kinds[i] == kinds[starts[-1]]]
    return [*starts, *more[: LAYERS - len(starts)]]


def _renumber(tree: Tree) -> None:
    """Special tokens below the vocabulary's end; image tokens without a number get one."""
    fields = [(part, name) for _, part in _parts(tree) for name in part if name.endswith(TOKENS)]
    high = {t for part, name in fields for t in _integers(part[name]) if t >= FIRST_SPECIAL}
    fresh = {token: FIRST_SPECIAL + i for i, token in enumerate(sorted(high))}
    spare = iter(range(FIRST_SPECIAL + len(high), VOCABULARY))
    for part, name in fields:
        value = part[name]
        if isinstance(value, list):
            part[name] = [fresh.get(token, token) for token in value]
        elif isinstance(value, int):
            part[name] = fresh.get(value, value)
        elif name in IMAGE_TOKENS:
            part[name] = next(spare)


def _integers(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [token for token in values if isinstance(token, int)]
