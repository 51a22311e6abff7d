"""The facts of one architecture, found in a process of its own.

Where there is a pair of model and processor (:mod:`zoo.pairs`), everything goes through it, as a user's call would;
otherwise a model with hand-made inputs (:mod:`zoo.inputs`) is asked. Heavy imports are within functions: the process that
hands out the work needs none of them.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["LIMITS", "examine", "send"]

SIZE = (300, 500)
BLOCK = (300, 100, 380, 180)
QUESTION, ANSWER = "what color is the block", "a red block"
BLOCKS = 16

LIMITS = {"rows": 1e-5, "outputs": 1e-4, "gradients": 1e-4, "rate": 0.8, "percentile": 0.75}
"""Largest errors, absolute for sums of rows and relative for the others; least hit rate, and least percentile."""

Row = dict[str, Any]


def send(name: str, pipe: Any) -> None:
    """Examine, and send the row as it grows: what is known before a crash is not lost."""
    import torch
    import transformers

    from zoo import shim

    # The process began with the search path of the one that asked for it.
    sys.path.append(str(shim.FOLDER))
    shim.install()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for row in examine(name):
        pipe.send(row)
    pipe.close()


def examine(name: str) -> Any:
    """The row of an architecture, after each of its stages."""
    began = time.monotonic()
    exam = _Exam(name)
    for stage in (exam.by_hand, exam.ask, exam.capture, exam.derive, exam.eager, exam.atlas, exam.relevancy):
        exam.attempt(stage)
        exam.row["seconds"] = round(time.monotonic() - began, 1)
        yield dict(exam.row)


def blank(name: str) -> Row:
    """A row before anything is known."""
    return {
        "name": name, "builds": False, "runs": False, "captured": False, "gradients": False, "atlas": "none",
        "notes": "", "pair": False, "towers": {}, "found": 0, "executed": 0, "watched": 0, "missing": [],
        "outputs_error": None, "gradient_error": None, "eager": None, "rate": None, "percentile": None,
        "marked": None, "relevancy": "none", "seconds": 0.0,
    }  # fmt: skip


@dataclass
class _Exam:
    name: str
    row: Row = field(init=False)
    model: Any = None
    case: Any = None
    trace: Any = None
    copy: Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        self.row = blank(self.name)

    def attempt(self, stage: Callable[[], None]) -> None:
        try:
            stage()
        except Exception as error:  # noqa: BLE001 - a failure is what is to be told
            self.note(f"{stage.__name__}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")

    def note(self, text: str) -> None:
        self.row["notes"] = "; ".join(filter(None, (self.row["notes"], text)))

    # The stages.

    def by_hand(self) -> None:
        import torch
        import zoo

        self.model = zoo.build(self.name)
        self.row["builds"] = True
        made = zoo.inputs(self.name, self.model)
        with torch.no_grad():
            logits = self.model(**made.inputs, use_cache=False, return_dict=True).logits
        self.row["runs"] = bool(made.answer_logits(logits).isfinite().all())
        if made.notes:
            self.note(made.notes)

    def ask(self) -> None:
        from zoo import pairs

        if self.name in pairs.PAIRS:
            self.row["pair"] = True
            self._asked()
        else:
            self._made()
        self._count()

    def _asked(self) -> None:
        import torch
        from zoo import pairs

        import lvlm_probe as lp

        self.model, processor = pairs.make(self.name)
        self.copy = lambda: pairs.make(self.name, attention="eager")[0]
        probe = lp.Probe(self.model, processor)
        self._towers(probe)
        self.case = probe.case(picture(), QUESTION, answer=ANSWER)
        with torch.no_grad():
            logits = self.model(**self.case.inputs, use_cache=False, return_dict=True).logits
        self.row["runs"] &= bool(logits[:, -len(self.case.answer_ids) - 1 :].isfinite().all())

    def _made(self) -> None:
        import zoo

        import lvlm_probe as lp

        made = zoo.inputs(self.name, self.model)
        self.copy = lambda: zoo.build(self.name, attention="eager")
        probe = lp.Probe(self.model)
        self._towers(probe)
        self.case = probe.case_from_inputs(made.inputs, made.answer_start)

    def _towers(self, probe: Any) -> None:
        towers = probe.sites.towers(("vision", "projector", "encoder", "language"), images=True)
        self.row["towers"] = {name: len(layers) for name, layers in towers.items()}
        self.row["found"] = len(paths_of(probe.sites))

    def _count(self) -> None:
        from coverage_truth import feeding

        self.executed = feeding(self.model, self.case.inputs, len(self.case.answer_ids))
        self.row["executed"] = len(self.executed)

    def capture(self) -> None:
        self._need_case()
        self.trace = recorded(self.case)
        watched = self._watched()
        self.row["watched"] = len(watched)
        self.row["missing"] = [path for path in self.executed if path not in watched]
        error = outputs_error(self.trace)
        self.row["outputs_error"] = error
        self.row["captured"] = not self.row["missing"] and error <= LIMITS["outputs"]

    def _watched(self) -> dict[str, str]:
        """Sites on the answer's path that were captured with their gradients: name by module's path."""
        paths = paths_of(self.case.probe.sites)
        facts = self.trace.meta["sites"]
        return {paths[site]: site for site, told in facts.items() if told["feeds"]}

    def _need_case(self) -> None:
        if self.case is None:
            raise LookupError("there is no case")

    def derive(self) -> None:
        from coverage_truth import weights_and_gradients

        if self.trace is None:
            raise LookupError("nothing was captured")
        self.eager_model = self.copy()
        truth = weights_and_gradients(
            self.eager_model, self.case.inputs, len(self.case.answer_ids), int(self.case.answer_ids[0])
        )
        watched = self._watched()
        errors = {}
        for path in self.executed:
            if path in watched and path in truth:
                call = self.trace.site(watched[path])
                call = call.with_gradient(self.trace.gradient(call, TARGET()))
                errors[path] = gradient_error(call, truth[path])
        lacking = [path for path in self.executed if path not in errors]
        worst = max(errors.values(), default=math.inf)
        self.row["gradient_error"] = worst
        self.row["gradients"] = bool(errors) and not lacking and worst <= LIMITS["gradients"]
        if lacking:
            self.note(f"no gradient to compare at {len(lacking)} sites, {lacking[0]} the first")
        if worst > LIMITS["gradients"] and errors:
            path = max(errors, key=lambda p: errors[p])
            self.note(f"gradients differ by {worst:.1e} at {path}")

    def eager(self) -> None:
        import lvlm_probe as lp

        if self.trace is None:
            return
        probe = lp.Probe(self.eager_model, self.case.probe.processor)
        case = probe.case_from_inputs(self.case.inputs, self._start(), self.case.images or None)
        trace = recorded(case)
        same = trace.meta["sites"].keys() == self.trace.meta["sites"].keys()
        self.row["eager"] = bool(same and outputs_error(trace) <= LIMITS["outputs"])

    def _start(self) -> int:
        read = self.case.inputs.get("decoder_input_ids", self.case.inputs.get("input_ids"))
        return read.shape[1] - len(self.case.answer_ids)

    def atlas(self) -> None:
        self._need_case()
        layout = self.case.layout
        if not any(span.tokens or span.patches for span in layout.images):
            return
        self.row["atlas"] = "unverified"
        found = self._verified()
        self.row["rate"], self.row["percentile"] = found.rate, found.percentile
        if found.rate >= LIMITS["rate"] or found.percentile >= LIMITS["percentile"]:
            self.row["atlas"] = "verified"

    def _verified(self) -> Any:
        from lvlm_probe.adapter import SourceSequence
        from lvlm_probe.asking import encoded
        from lvlm_probe.verify import verify

        probe, case = self.case.probe, self.case
        pictures = [noise(span.size) for span in case.layout.images]
        if case.text:
            prepare = lambda given: encoded(probe, given, case.text)  # noqa: E731
        else:
            prepare = as_pixels
        source = SourceSequence(
            self.model.config, probe.processor, case.inputs, tuple(s.size for s in case.layout.images),
            case.layout.answer_start,
        )  # fmt: skip
        return verify(case.layout, source, self.model, probe.sites, pictures, prepare, blocks=BLOCKS)

    def relevancy(self) -> None:
        self._need_case()
        found = self.case.explain("relevancy", 0)
        drawn = found.pixels(0)
        assert tuple(drawn.shape) == self.case.layout.images[0].size
        if bool(drawn.isfinite().all()) and bool((drawn != 0).any()):
            self.row["relevancy"] = "tokens" if found.patches is None else "patches"


def TARGET() -> Any:
    import lvlm_probe as lp

    return lp.Target(0, "logit")


def picture() -> Any:
    """A red block on grey."""
    from PIL import Image, ImageDraw

    made = Image.new("RGB", (SIZE[1], SIZE[0]), (120, 130, 140))
    ImageDraw.Draw(made).rectangle(BLOCK, fill=(220, 30, 20))
    return made


def noise(size: tuple[int, int]) -> Any:
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))


def as_pixels(pictures: Any) -> dict[str, Any]:
    """Pictures of the model's own size as its input."""
    import numpy as np
    import torch

    arrays = np.stack([np.asarray(p, dtype=np.float32) for p in pictures])
    return {"pixel_values": torch.from_numpy(arrays).permute(0, 3, 1, 2) / 127.5 - 1}


def paths_of(sites: Any) -> dict[str, str]:
    """Module paths by name of the site."""
    from lvlm_probe.attention import site_name

    return {
        site_name(tower, number, cross=cross): path
        for tower, layers in sites.towers(("vision", "projector", "encoder", "language"), images=True).items()
        for number, layer in enumerate(layers)
        for cross, path in ((False, layer.attention), (True, layer.cross_attention))
        if path is not None
    }


def recorded(case: Any) -> Any:
    import lvlm_probe as lp
    from lvlm_probe.errors import CaptureError

    try:
        return case.record(lp.Capture(attention_output=True, targets=(TARGET(),)))
    except CaptureError as error:
        if "towers=('language',)" not in str(error):
            raise
    return case.record(
        lp.Capture(towers=("encoder", "language"), attention_output=True, targets=(TARGET(),))
    )


def outputs_error(trace: Any) -> float:
    """Over all sites: how far A·v is from what the kernel gave, relative to its largest; infinite if a row is no share."""
    worst = 0.0
    for name in trace.meta["sites"]:
        call = trace.site(name)
        weights = call.weights()
        sums = weights.sum(-1)
        if not bool((((sums - 1).abs() < LIMITS["rows"]) | (sums == 0)).all()):
            return math.inf
        value = call.value.float().repeat_interleave(call.heads // len(call.value), dim=0)
        output = trace[f"{name}.output"].float()
        worst = max(worst, relative(weights @ value, output))
    return worst


def gradient_error(call: Any, truth: Any) -> float:
    """Largest difference where the weights are not 0, relative to the largest gradient there."""
    weights, gradients = call.weights(), call.weight_gradients()
    row = column = 0
    largest = worst = 0.0
    for own, own_gradient in truth:
        items = own.reshape(-1, call.heads, *own.shape[-2:]).float()
        item_gradients = own_gradient.reshape(items.shape).float()
        for item, gradient in zip(items, item_gradients, strict=True):
            n, m = item.shape[-2:]
            part = (slice(None), slice(row, row + n), slice(column, column + m))
            if weights[part].shape != item.shape:
                return math.inf
            seen = (item > 0) & (weights[part] > 0)
            off = (gradients[part] - gradient).abs()[seen]
            worst = max(worst, float(off.max()) if off.numel() else 0.0)
            largest = max(largest, float(gradient.abs()[seen].max()) if off.numel() else 0.0)
            row, column = row + n, column + m
    if (row, column) != (call.queries, call.keys):
        return math.inf
    return worst / largest if largest else worst


def relative(found: Any, truth: Any) -> float:
    return float((found - truth).abs().max() / truth.abs().max().clamp(min=1e-12))
