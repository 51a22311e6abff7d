"""The attention calls of a run: each site's visits gathered, handed on as one call, checked to be complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lvlm_probe.adapter import LayerSite, Sites
from lvlm_probe.attention import site_name
from lvlm_probe.errors import CaptureError
from lvlm_probe.layout import TokenLayout
from lvlm_probe.reading import Site, Visit, joined, laid_out
from lvlm_probe.target import Target

if TYPE_CHECKING:
    from lvlm_probe.stream import Sink

__all__ = ["Visits", "attention_sites"]


def attention_sites(towers: Mapping[str, Sequence[LayerSite]]) -> list[str]:
    """Names of every attention call of these layers, in the order of the forward pass."""
    return [
        site_name(tower, number, cross=cross)
        for tower, layers in towers.items()
        for number, site in enumerate(layers)
        for cross, path in ((False, site.attention), (True, site.cross_attention))
        if path is not None
    ]


class Visits:
    """Gathers visits in the forward pass, and their gradients in each backward pass.

    Args:
        sites: Where they are.
        layout: Of the tokens that go through them.
        expected: Names of the sites that must be reached.
        sink: Takes the calls.

    Attributes:
        target: Whose backward pass is under way; None in the forward pass.
    """

    def __init__(
        self, sites: Sites, layout: TokenLayout, expected: Sequence[str], sink: Sink
    ) -> None:
        self.sites, self.layout, self.expected, self.sink = sites, layout, expected, sink
        self.target: Target | None = None
        self.pending: dict[str, list[Visit]] = {}  # of sites that may be visited again
        self.counts: dict[str, int] = {}
        self.sizes: dict[str, tuple[int, int]] = {}
        self.again: dict[str, int] = {}  # visits in a layer that is computed again
        self.arrived: dict[str, list[tuple[int, Visit]]] = {}  # with their gradients
        self.fired: set[str] = set()
        self.nodes: dict[str, list[Any]] = {}  # where each site's visits stand in autograd's graph

    def add(self, site: Site, visit: Visit) -> int | None:
        """Take a visit, in the forward pass or as a layer is computed again.

        Returns:
            Which of the site's visits it is; None if it does not attend over tokens and is none of ours.

        Raises:
            CaptureError: If the site was left already, and is reached once more.
        """
        if self.sites.discovered and not self._over_tokens(site, visit):
            return None
        name = site.name
        if self.target is not None:
            self.again[name] = self.again.get(name, 0) + 1
            return self.again[name] - 1
        if name in self.counts:
            raise CaptureError(
                f"{name} was reached again after other layers had been: a layer that runs twice in one forward "
                "pass has no one place in the order of layers; let the adapter leave it out"
            )
        if site.tower in ("encoder", "language"):
            # Images may go one by one through all of the vision encoder; a text goes through its layers once.
            self._hand_on([other for other in self.pending if other != name])
        self.pending.setdefault(name, []).append(visit)
        self.nodes.setdefault(name, []).append(visit.watched.grad_fn)
        return len(self.pending[name]) - 1

    def _over_tokens(self, site: Site, visit: Visit) -> bool:
        """Whether its queries are the sequence's tokens; models attend over other things too, such as their layers."""
        encoder = self.layout.encoder_length
        expected = {"encoder": encoder, "language": self.layout.length - encoder}
        return expected.get(site.tower, visit.call.queries) == visit.call.queries

    def _hand_on(self, names: Sequence[str]) -> None:
        for name in names:
            visits = self.pending.pop(name)
            self.counts[name] = len(visits)
            call = joined(visits)
            self.sizes[name] = (call.queries, call.keys)
            self.sink.call(call, laid_out([visit.output for visit in visits]))

    def end_of_forward(self, logits: Tensor, *, complete: bool) -> None:
        """Hand on what is left, and tell which sites the logits depend on.

        Args:
            logits: What the forward pass gave.
            complete: Whether every site must have been reached.

        Raises:
            CaptureError: If one was not.
        """
        self._hand_on(list(self.pending))
        missing = [name for name in self.expected if name not in self.counts]
        # Discovered sites may be there for another input, such as a sound.
        reached = any(name.startswith("language.") for name in self.counts)
        excused = self.sites.discovered and (reached or not self._of_language(missing))
        if complete and missing and not excused:
            raise CaptureError(
                f"the forward pass never reached {_listed(missing)}: mend the paths of the adapter"
            )
        self.sink.forwarded({name: self.sizes[name] for name in self._feeding(logits)})
        self.nodes.clear()

    def _feeding(self, logits: Tensor) -> list[str]:
        """Sites that the logits depend on, as far as autograd's graph tells: all of them where it has none."""
        if not self.sites.discovered or logits.grad_fn is None:
            return list(self.sizes)
        reached = _reached(logits.grad_fn)
        # In a layer that is to be computed again there is no graph yet; what starts one has no node.
        return [n for n in self.sizes if any(v is None or v in reached for v in self.nodes[n])]

    def _of_language(self, names: Sequence[str]) -> bool:
        return any(name.startswith("language.") for name in names)

    def gradient(self, name: str, place: int, visit: Visit, grad: Tensor) -> None:
        """Take the gradient of one visit; hand the site on once all of its visits have theirs."""
        assert self.target is not None
        visit.grad = visit.per_head(grad.detach())
        arrived = self.arrived.setdefault(name, [])
        arrived.append((place, visit))
        if len(arrived) < self.counts[name]:
            return
        visits = [visit for _, visit in sorted(arrived, key=lambda item: item[0])]
        call = joined(visits)
        for each in visits:
            each.grad = None
        del self.arrived[name]
        self.fired.add(name)
        self.sink.gradient(call, self.target)

    def end_of_backward(self, target: Target, *, complete: bool) -> None:
        """See that every site that was reached got its gradient.

        Args:
            target: Whose pass it was.
            complete: Whether they must have.

        Raises:
            CaptureError: If one did not.
        """
        missing = sorted(self.arrived)  # some of their visits only
        if not self.sites.discovered:
            missing += sorted(set(self.counts) - self.fired - set(missing))
        self.fired, self.again = set(), {}
        if complete and missing:
            raise CaptureError(
                f"the backward pass of target {target.name!r} brought no gradient to {_listed(missing)}: these "
                "layers do not feed the answer; let the adapter's vision_depth leave them out"
            )


def _reached(node: Any) -> set[Any]:
    """Every node of autograd's graph that this one was computed from."""
    found, waiting = {node}, [node]
    while waiting:
        for before, _ in waiting.pop().next_functions:
            if before is not None and before not in found:
                found.add(before)
                waiting.append(before)
    return found


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:6])}{' …' if len(names) > 6 else ''}"
