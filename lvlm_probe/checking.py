"""The checks that run the model on one case: sites, factors, gradients, relevancy, kernels, influence.

Each is held against something that shares no code with what it checks: a census by plain torch hooks, the model's own
eager attention with autograd, and the definition of relevancy on dense matrices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_probe.attention import site_name
from lvlm_probe.capture import TOWERS, Capture
from lvlm_probe.case import Case
from lvlm_probe.census import Attending, census, configs, logits_of, running_eager
from lvlm_probe.errors import LvlmProbeError
from lvlm_probe.hooks import untouched
from lvlm_probe.stream import stream
from lvlm_probe.tally import FactorTally, GradientTally, laid_out
from lvlm_probe.target import Target
from lvlm_probe.verdict import Check, judged

__all__ = ["Checking"]

LARGEST = 2500  # positions; above, attention that is written out for every layer fits no memory
_LARGEST_ONCE = 8000  # of one layer at a time
_TARGET = Target(0)

# Largest error, relative to the largest entry: of factors, and of gradients and relevancy.
_LIMITS: Mapping[torch.dtype, tuple[float, float]] = {
    torch.float64: (1e-3, 1e-3),
    torch.float32: (1e-3, 1e-3),
    torch.float16: (5e-3, 3e-2),
    torch.bfloat16: (3e-2, 2e-1),
}
_DRIFT: Mapping[torch.dtype, float] = {torch.float16: 0.02, torch.bfloat16: 0.1}
_NO_INFLUENCE = 1e-6  # of the largest logit
_RULED_OUT = 1e4


class Checking:
    """The checks of one case; what several of them need is run once."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.model: Any = case.probe.model
        self.answer = len(case.answer_tokens)
        dtype = case.probe.dtype
        self.half = dtype in _DRIFT
        self.factor_limit, self.gradient_limit = _LIMITS.get(dtype, _LIMITS[torch.float32])
        self.drift = _DRIFT.get(dtype, 1e-3)

    @cached_property
    def named(self) -> dict[str, str]:
        """Path of each of the adapter's sites, by its name."""
        case = self.case
        towers = case.probe.sites.towers(TOWERS, images=bool(case.layout.images))
        return {
            site_name(tower, number, cross=cross): path
            for tower, layers in towers.items()
            for number, site in enumerate(layers)
            for cross, path in ((False, site.attention), (True, site.cross_attention))
            if path is not None
        }

    @cached_property
    def captured(self) -> FactorTally:
        """One stream with one backward pass."""
        found = FactorTally()
        self._stream(found)
        return found

    def _stream(self, sink: Any) -> None:
        case = self.case
        towers = tuple(case.probe.sites.towers(TOWERS, images=bool(case.layout.images)))
        stream(
            self.model,
            case.probe.sites,
            case.layout,
            case.inputs,
            Capture(towers=towers, targets=(), logits=False),
            [_TARGET],
            sink,
            case.token_id,
            case.answer_ids,
            None,
            case.probe.checkpointing,
        )

    def sites(self) -> Check:
        """Every module that attends on the way to the answer is captured, and nothing else is."""
        seen = census(self.model, self.case.inputs, self.answer).attending
        by_module = {id(each.module): each for each in seen.values()}
        modules = {id(self.model.get_submodule(path)): name for name, path in self.named.items()}
        feeding = [each for each in seen.values() if each.feeds and not each.over_channels]
        missed = [each.path for each in feeding if id(each.module) not in modules]
        idle = [
            f"{name} ({self.named[name]})"
            for module, name in modules.items()
            if module not in by_module or not by_module[module].feeds
        ]
        discovered = self.case.probe.sites.discovered
        complaints: list[str] = []
        if missed and self._only_unshown(missed):
            told = (
                f"{_listed(missed)} are not captured, as the layout ties no position to the picture"
            )
            return Check("sites", "warned", told, float(len(missed)), 0.0)
        if missed:
            complaints.append(
                f"{_listed(missed)} attend on the way to the answer, and the adapter names none of them"
            )
        if idle and not discovered:
            complaints.append(f"{_listed(idle)}: named by the adapter, and feed nothing")
        if complaints:
            return Check("sites", "failed", "; ".join(complaints), float(len(missed + idle)), 0.0)
        left = [
            name
            for module, name in modules.items()
            if module in by_module and by_module[module].feeds and name not in self.captured.reached
        ]
        if left and not discovered:
            told = f"{_listed(left)} feed the answer, and their gradient was not captured"
            return Check("sites", "failed", told, float(len(left)), 0.0)
        detail = f"{len(self.captured.reached)} captured of {len(feeding)} that feed the answer"
        if left:
            detail += f"; {_listed(left)} attend to something else than tokens"
        if channels := [each.path for each in seen.values() if each.over_channels]:
            detail += f"; {_listed(channels)} mix channels, not tokens"
        if idle:
            detail += f"; {_listed(idle)} are found in the model, and feed nothing here"
        return Check("sites", "passed", detail, 0.0, 0.0)

    def _only_unshown(self, missed: Sequence[str]) -> bool:
        """Whether the adapter names these, and the case leaves them out for want of a layout."""
        if self.case.layout.images or not self.case.images:
            return False
        towers = self.case.probe.sites.towers(TOWERS, images=True)
        paths = {
            path
            for layers in towers.values()
            for site in layers
            for path in (site.attention, site.cross_attention)
        }
        return paths.issuperset(missed)

    def rows(self) -> Check:
        """Rows of the weights that are rebuilt from the factors sum to one."""
        site, worst = _worst(self.captured.rows)
        return judged(
            "rows", worst, 1e-3, f"{len(self.captured.rows)} sites; furthest from 1: {site}"
        )

    def outputs(self) -> Check:
        """Rebuilt weights times values are what the attention gave."""
        site, worst = _worst(self.captured.outputs)
        detail = (
            f"{len(self.captured.outputs)} sites, relative to the largest entry; furthest: {site}"
        )
        return judged("outputs", worst, self.factor_limit, detail)

    @cached_property
    def eager(self) -> dict[str, tuple[Tensor, Tensor]]:
        """``A`` and ``∂A`` by site, [H N M], from the model's eager attention and autograd."""
        case = self.case
        with running_eager(self.model):
            seen = census(self.model, case.inputs, self.answer)
        scalar = _TARGET.total(seen.logits, case.answer_ids, case.token_id)
        modules = {id(each.module): each for each in seen.attending.values()}
        found: dict[str, Attending] = {}
        for name in self.captured.sizes:
            each = modules.get(id(self.model.get_submodule(self.named[name])))
            if each is not None and each.weights and all(w.requires_grad for w in each.weights):
                found[name] = each
        weights = [weight for each in found.values() for weight in each.weights]
        grads = iter(
            torch.autograd.grad(scalar, weights, materialize_grads=True, allow_unused=True)
        )
        return {
            name: (
                laid_out([w.detach() for w in each.weights], self.captured.heads[name]),
                laid_out([next(grads) for _ in each.weights], self.captured.heads[name]),
            )
            for name, each in found.items()
        }

    @cached_property
    def _turns(self) -> bool:
        """Whether some part of the model attends eagerly when it is told to."""
        with running_eager(self.model):
            return any(
                each._attn_implementation_internal == "eager" for each in configs(self.model)
            )

    def _no_eager(self, largest: int) -> str | None:
        """Why there is nothing to compare with; None if there is."""
        if not hasattr(self.model, "set_attn_implementation"):
            return "the model is none of transformers', and has no eager attention to turn to"
        if not self._turns:
            return "no part of the model can be turned to eager attention"
        positions = max(max(size) for size in self.captured.sizes.values())
        if positions > largest:
            return (
                f"{positions} positions attend at once: above {largest}, eager attention takes too much memory; "
                "give a smaller image"
            )
        return None

    def gradients(self) -> Check:
        """Rebuilt ``A`` and ``∂A`` are those that autograd finds on the model's eager attention."""
        if why := self._no_eager(LARGEST):
            return Check("gradients", "skipped", why)
        if not self.eager:
            return Check("gradients", "skipped", "no site builds its weights, also not eagerly")
        found = GradientTally(eager=self.eager)
        # In half precision, kernels differ by more than what is to be seen here.
        if self.half:
            with running_eager(self.model):
                self._stream(found)
        else:
            self._stream(found)
        both = {site: max(found.weights[site], found.gradients[site]) for site in found.gradients}
        if len(both) < len(self.eager):
            lost = [site for site in self.eager if site not in both]
            return Check("gradients", "failed", f"no gradient was captured of {_listed(lost)}")
        site, worst = _worst(both)
        detail = f"{len(both)} sites against autograd on eager attention; furthest: {site}"
        rest = [site for site in self.captured.sizes if site not in self.eager]
        if rest:
            detail += f"; without weights to compare: {_listed(rest)}"
        return judged("gradients", worst, self.gradient_limit, detail)

    def relevancy(self) -> Check:
        """The recipe's relevancy is the definition's, on dense matrices of eager attention."""
        if why := self._no_eager(LARGEST) or self._undefined():
            return Check("relevancy", "skipped", why)
        if self.half:
            with running_eager(self.model):
                found = self.case.explain("relevancy", _TARGET, layers=False)
        else:
            found = self.case.explain("relevancy", _TARGET, layers=False)
        position = self.case.layout.answer_start - 1
        matrix = self._propagated("language")
        row = matrix[position].cpu()
        row[position] -= 1
        worst = _off(found.tokens, row)
        towers = "the language model"
        straight = not self.case.layout.has_queries and not self._of("projector")
        if found.patches is not None and straight and self._whole("vision"):
            vision = self._propagated("vision").cpu()
            spread = [span.spread(row, len(vision)) for span in self.case.layout.images]
            worst = max(worst, _off(found.patches, torch.stack(spread).sum(0) @ vision))
            towers += " and the vision encoder"
        detail = f"through {towers}, against dense matrices of eager attention"
        return judged("relevancy", worst, self.gradient_limit, detail)

    def _undefined(self) -> str | None:
        """Why the plain rule does not hold here; None if it does."""
        sites = self.captured.sizes
        if any(s.startswith("language.") and s.endswith(".cross_attention") for s in sites):
            return "the language model attends across, where the rule is another"
        length = self.case.layout.length
        if any(sites[name] != (length, length) for name in self._of("language")):
            return (
                "the language model attends to more than its own tokens, where the rule is another"
            )
        if not self._whole("language"):
            return "some layers of the language model build no weights, also not eagerly"
        return None

    def _whole(self, tower: str) -> bool:
        return all(name in self.eager for name in self._of(tower))

    def _of(self, tower: str) -> list[str]:
        return [name for name in self.captured.sizes if name.startswith(f"{tower}.")]

    def _propagated(self, tower: str) -> Tensor:
        """Rules 5 and 6, as they are written, in float64."""
        pairs = [self.eager[name] for name in self._of(tower)]
        matrix = torch.eye(pairs[0][0].shape[-1], dtype=torch.float64, device=pairs[0][0].device)
        for weights, gradient in pairs:
            mixed = (weights.double() * gradient.double()).clamp(min=0).mean(0)
            matrix = matrix + mixed @ matrix
        return matrix

    def kernel(self) -> Check:
        """How far the running kernel's logits are from eager ones."""
        if why := self._no_eager(_LARGEST_ONCE):
            return Check("kernel", "skipped", why)
        kernel = getattr(self.model.config, "_attn_implementation", None)
        with untouched(self.model), torch.no_grad():
            running = logits_of(self.model, self.case.inputs, self.answer).float()
            with running_eager(self.model):
                eager = logits_of(self.model, self.case.inputs, self.answer).float()
        drift = _apart(running, eager)
        ids = self.case.answer_ids[:, None]
        likely = (running.softmax(-1).gather(1, ids) - eager.softmax(-1).gather(1, ids)).abs()
        flips = int((running.argmax(-1) != eager.argmax(-1)).sum())
        limit = self.drift * max(1.0, _largest(eager))
        detail = (
            f"{kernel} and eager: logits {drift:.1e} apart, the answer's probabilities {float(likely.max()):.1e}; "
            f"the likeliest token differs at {flips} of {len(ids)} places"
        )
        status = "warned" if flips or not drift <= limit else "passed"
        return Check("kernel", status, detail, drift, limit)

    def influence(self) -> Check:
        """Noise on what a captured site gives changes the logits."""
        last = {name.split(".")[0]: name for name in self.captured.sizes}
        with untouched(self.model), torch.no_grad():
            plain = logits_of(self.model, self.case.inputs, self.answer).float()
            changes: dict[str, float] = {}
            for name in last.values():
                module = self.model.get_submodule(self.named[name])
                handle = module.register_forward_hook(_noisy)
                try:
                    noisy = logits_of(self.model, self.case.inputs, self.answer).float()
                finally:
                    handle.remove()
                changes[name] = _apart(noisy, plain) / _largest(plain)
        site = min(changes, key=lambda name: changes[name])
        told = ", ".join(f"{name} by {change:.1e}" for name, change in changes.items())
        status = "passed" if changes[site] > _NO_INFLUENCE else "failed"
        detail = f"noise moves the logits, of the largest: {told}"
        return Check("influence", status, detail, changes[site], _NO_INFLUENCE)


def _noisy(module: nn.Module, args: Any, output: Any) -> Any:
    value = output[0] if isinstance(output, tuple) else output
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(value.shape, generator=generator).to(value)
    changed = value + noise * value.float().std().to(value)
    return (changed, *output[1:]) if isinstance(output, tuple) else changed


def _written(logits: Tensor) -> Tensor:
    """Which logits are the model's own, not put there to rule a token out."""
    return logits.abs() < _RULED_OUT


def _largest(logits: Tensor) -> float:
    return float(logits[_written(logits)].abs().max().clamp(min=1e-30))


def _apart(found: Tensor, true: Tensor) -> float:
    return float((found - true)[_written(true)].abs().max())


def _off(found: Tensor, true: Tensor) -> float:
    """Largest difference, relative to the largest entry."""
    largest = true.abs().max().clamp(min=1e-30)
    return float((found.double().cpu() - true).abs().max() / largest)


def _worst(errors: Mapping[str, float]) -> tuple[str, float]:
    if not errors:
        raise LvlmProbeError("no attention call was captured: mend the paths of the adapter")
    site = max(errors, key=lambda name: (errors[name] != errors[name], errors[name]))
    return site, errors[site]


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:6])}{f' and {len(names) - 6} more' if len(names) > 6 else ''}"
