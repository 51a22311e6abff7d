"""What a run could leave behind on a model, and whether it did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from lvlm_probe.census import configs
from lvlm_probe.verdict import Check

__all__ = ["State", "restored"]


@dataclass(frozen=True, slots=True)
class State:
    """What a run could leave behind on a model, by the path of a module or parameter."""

    hooks: dict[str, tuple[int, ...]]
    controllers: dict[str, tuple[str, ...]]
    training: dict[str, bool]
    trainable: dict[str, bool]
    gradients: dict[str, bool]
    kernels: list[Any]

    @classmethod
    def of(cls, model: nn.Module) -> State:
        """As the model stands."""
        modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
        return cls(
            hooks={path: _hooks(module) for path, module in modules.items()},
            controllers={
                path: tuple(n for n in ("__nnsight__", "forward") if n in vars(module))
                for path, module in modules.items()
            },
            training={path: module.training for path, module in modules.items()},
            trainable={path: each.requires_grad for path, each in parameters.items()},
            gradients={path: each.grad is not None for path, each in parameters.items()},
            kernels=[config._attn_implementation_internal for config in configs(model)],
        )


def _hooks(module: nn.Module) -> tuple[int, ...]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return tuple(len(vars(module)[kind]) for kind in kinds)


def restored(before: State, after: State) -> Check:
    """Passed if nothing differs.

    Args:
        before: As the model was found.
        after: As it was left.
    """
    changed = [
        f"{what} of {path or 'the model'}"
        for what in ("hooks", "controllers", "training", "trainable", "gradients")
        for path, value in getattr(after, what).items()
        if getattr(before, what)[path] != value
    ]
    if before.kernels != after.kernels:
        changed.append("the attention kernel")
    if changed:
        told = f"changed by this check, and not put back: {', '.join(changed[:6])}"
        return Check("restored", "failed", told, float(len(changed)), 0.0)
    told = f"{len(after.hooks)} modules and {len(after.trainable)} parameters are as they were"
    return Check("restored", "passed", told, 0.0, 0.0)
