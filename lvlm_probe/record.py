"""From a stream to a trace: what a capture asked for, by name, in memory or laid down in a file as it comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lvlm_probe.attention import AttentionCall
from lvlm_probe.capture import Capture
from lvlm_probe.store import SHARD_SIZE, Spool, load_trace, save_trace
from lvlm_probe.stream import stream
from lvlm_probe.target import Target
from lvlm_probe.trace import Trace

if TYPE_CHECKING:
    from lvlm_probe.case import Case

__all__ = ["record"]


def record(
    case: Case, capture: Capture, path: Path | None, progress: Callable[[int, int], None] | None
) -> Trace:
    """See :meth:`lvlm_probe.Case.record`."""
    targets = _targets(case, capture)
    spool = None if path is None else Spool(path.parent)
    recorder = _Recorder(capture, spool)
    try:
        recorder.put("tokens.ids", case.ids)
        if capture.images:
            for number, picture in enumerate(case.images):
                recorder.put(f"image.{number}", torch.from_numpy(np.array(picture)))
        values = stream(
            case.probe.model,
            case.probe.sites,
            case.layout,
            case.inputs,
            capture,
            targets,
            recorder,
            case.token_id,
            case.answer_ids,
            progress,
            case.probe.checkpointing,
        )
        meta = _document(case, capture, recorder, targets, values)
        if path is None or spool is None:
            return Trace(recorder.held, meta)
        return load_trace(save_trace(spool, meta, path, SHARD_SIZE))
    finally:
        if spool is not None:
            spool.close()


def _targets(case: Case, capture: Capture) -> list[Target]:
    if capture.targets == "answer":
        return [Target(index) for index in range(len(case.answer_tokens))]
    wanted = [Target.of(target).within(case.answer_tokens) for target in capture.targets]
    return list(dict.fromkeys(wanted))


class _Recorder:
    """A sink that keeps what the capture asked for."""

    def __init__(self, capture: Capture, spool: Spool | None) -> None:
        self.capture = capture
        self.spool = spool
        self.held: dict[str, Tensor] = {}
        self.sites: dict[str, dict[str, Any]] = {}
        self.fed: set[str] = set()  # sites that feed some target

    def put(self, name: str, value: Tensor) -> None:
        if value.is_floating_point() and self.capture.dtype is not None:
            value = value.to(getattr(torch, self.capture.dtype))
        if self.spool is not None:
            self.spool.add(name, value)
        else:
            # A copy: what the model holds may be a view of something larger.
            self.held[name] = value.detach().cpu().contiguous().clone()

    def tensor(self, name: str, value: Tensor) -> None:
        self.put(name, value)

    def call(self, call: AttentionCall, output: Tensor) -> None:
        self.sites[call.site] = {
            "heads": call.heads,
            "queries": call.queries,
            "keys": call.keys,
            "order": len(self.sites),
            "mask": call.mask.to_json(),
            "scale": call.scale,
            "softcap": call.softcap,
        }
        if self.capture.attention:
            for name in ("query", "key", "value"):
                self.put(f"{call.site}.{name}", getattr(call, name))
            if call.mask.dense is not None:
                self.put(f"{call.site}.mask", call.mask.dense)
        if self.capture.attention_output:
            self.put(f"{call.site}.output", output)

    def gradient(self, call: AttentionCall, target: Target) -> None:
        assert call.output_grad is not None
        self.fed.add(call.site)
        self.put(f"{call.site}.output_grad.{target.name}", call.output_grad)

    def forwarded(self, sizes: Mapping[str, tuple[int, int]]) -> None:
        """Each call told its own."""

    def passed(self, target: Target) -> None:
        """Nothing is left to do."""


def _document(
    case: Case,
    capture: Capture,
    recorder: _Recorder,
    targets: list[Target],
    values: Mapping[str, float],
) -> dict[str, Any]:
    depth: dict[str, int] = {}
    for site in recorder.sites if capture.attention else ():
        tower, _, layer, _ = site.split(".")
        depth[tower] = max(depth.get(tower, 0), int(layer) + 1)
    if targets:
        for name, facts in recorder.sites.items():
            facts["feeds"] = name in recorder.fed
    return {
        **case.probe.provenance,
        "prompt": case.prompt,
        "text": case.text,
        "answer": case.answer,
        "tokens": list(case.words),
        "layout": case.layout.to_json(),
        "depth": depth,
        "sites": recorder.sites,
        "targets": {
            target.name: {
                **target.to_json(),
                "token_id": int(case.answer_ids[target.index]),
                "value": values[target.name],
            }
            for target in targets
        },
        "capture": capture.to_json(),
        "seed": torch.initial_seed(),
    }
