"""The facts of one architecture, found in a process of its own.

Where there is a pair of model and processor (:mod:`zoo.pairs`), everything goes through it as a user's question would, on
a picture of 300 × 500 pixels; otherwise a model is asked with inputs made by hand (:mod:`zoo.inputs`). Heavy imports are within
functions: the process that hands out the work needs none of them.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from coverage_measures import (
    TOWERS,
    difference,
    errors_of,
    marked_rate,
    paths_of,
    picture,
    recorded,
    target,
    verified,
)

__all__ = ["LIMITS", "Row", "blank", "examine", "noted", "send"]

QUESTION, ANSWER = "what color is the block", "a red block"

LIMITS = {"rows": 1e-5, "outputs": 1e-4, "gradients": 1e-4, "rate": 0.8, "percentile": 0.75}
"""Largest errors, absolute for sums of rows and relative for the others; least hit rate, least percentile."""

Row = dict[str, Any]


def blank(name: str) -> Row:
    """A row before anything is known; docs/models.md says what each field means."""
    return {
        "name": name, "builds": False, "runs": False, "captured": False, "gradients": False, "atlas": "none",
        "notes": "", "inputs": "by hand", "towers": {}, "found": 0, "executed": 0, "watched": 0, "missing": [],
        "rows_error": None, "output_error": None, "gradient_error": None, "weight_error": None, "eager": None,
        "rate": None, "percentile": None, "marked": None, "relevancy": "none", "seconds": 0.0,
    }  # fmt: skip


def noted(row: Row, text: str) -> None:
    """Add to a row's notes, once."""
    if text not in row["notes"]:
        row["notes"] = "; ".join(filter(None, (row["notes"], text)))


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
    warnings.simplefilter("ignore")  # what they say is in the notes
    for row in examine(name):
        pipe.send(row)
    pipe.close()


def examine(name: str) -> Iterator[Row]:
    """The row of an architecture, after each of its stages."""
    began = time.monotonic()
    exam = _Exam(name)
    for stage in exam.stages():
        try:
            stage()
        except Exception as error:  # noqa: BLE001 - a failure is what is to be told
            noted(exam.row, f"{stage.__name__.strip('_')}: {_told(error)}")
        exam.row["seconds"] = round(time.monotonic() - began, 1)
        yield dict(exam.row)


def _told(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 240 else text[:237] + '...'}"


@dataclass(frozen=True)
class _Subject:
    """A model that was asked, and how to ask a copy of it that attends eagerly."""

    case: Any
    eager: Callable[[], _Subject]


@dataclass
class _Exam:
    name: str
    row: Row = field(init=False)
    subject: _Subject | None = None
    copy: _Subject | None = None
    trace: Any = None
    executed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.row = blank(self.name)

    def stages(self) -> Iterator[Callable[[], None]]:
        """What to find out, in order; what needs an earlier one that failed is left out."""
        yield self.run
        yield self.ask
        if self.subject is not None:
            yield self.capture
            if self.trace is not None:
                yield self.derive
                yield self.eager
            yield self.atlas
            yield self.relevancy

    @property
    def case(self) -> Any:
        assert self.subject is not None
        return self.subject.case

    @property
    def model(self) -> Any:
        return self.case.probe.model

    def run(self) -> None:
        """With inputs made by hand."""
        import torch
        import zoo

        model = zoo.build(self.name)
        self.row["builds"] = True
        made = zoo.inputs(self.name, model)
        with torch.no_grad():
            logits = model(**made.inputs, use_cache=False, return_dict=True).logits
        self.row["runs"] = bool(made.answer_logits(logits).isfinite().all())
        for text in (made.notes or zoo.WITHOUT_IMAGE.get(self.name), zoo.DISCRETE.get(self.name)):
            if text:
                noted(self.row, text.rstrip("."))

    def ask(self) -> None:
        """A question about a picture through the pair, where there is one that works."""
        from coverage_truth import feeding
        from zoo import pairs

        if self.name in pairs.PAIRS:
            try:
                self.subject = _through_pair(self.name)
                self.row["inputs"] = "processor"
            except Exception as error:  # noqa: BLE001 - a failure is what is to be told
                noted(self.row, f"its processor's inputs fail: {_told(error)}")
        self.subject = self.subject or _made_by_hand(self.name)
        sites = self.case.probe.sites
        towers = sites.towers(TOWERS, images=True)
        self.row["towers"] = {name: len(layers) for name, layers in towers.items()}
        self.row["found"] = len(paths_of(sites))
        found = feeding(self.model, self.case.inputs, len(self.case.answer_ids))
        self.executed = found.sites
        self.row["executed"] = len(self.executed)
        for text in found.apart:
            noted(self.row, text)

    def capture(self) -> None:
        self.trace = recorded(self.case)
        watched = self._watched()
        self.row["watched"] = sum(path in watched for path in self.executed)
        self.row["missing"] = [path for path in self.executed if path not in watched]
        rows, outputs, worst = errors_of(self.trace)
        self.row["rows_error"], self.row["output_error"] = rows, outputs
        right = rows <= LIMITS["rows"] and outputs <= LIMITS["outputs"]
        self.row["captured"] = bool(self.executed) and not self.row["missing"] and right
        if not right:
            noted(
                self.row,
                f"rows of A sum to 1 within {rows:.1e}, A·v is off by {outputs:.1e} at {worst}",
            )
        if self.row["missing"]:
            noted(
                self.row,
                f"not captured: {', '.join(self.row['missing'][:3])} and {len(self.row['missing'])} in all",
            )

    def _watched(self) -> dict[str, str]:
        """Sites that were captured with their gradients: name by module's path."""
        paths = paths_of(self.case.probe.sites)
        facts = self.trace.meta["sites"]
        return {paths[site]: site for site, told in facts.items() if told["feeds"]}

    def derive(self) -> None:
        """∂A, rebuilt, against autograd on the weights of eager attention."""
        from coverage_truth import weights_and_gradients

        assert self.subject is not None
        self.copy = self.subject.eager()
        answer = self.case.answer_ids
        truth = weights_and_gradients(
            self.copy.case.probe.model, self.case.inputs, len(answer), int(answer[0])
        )
        watched = self._watched()
        errors: dict[str, tuple[float, float]] = {}
        for path in self.executed:
            if path in watched and path in truth:
                call = self.trace.site(watched[path])
                call = call.with_gradient(self.trace.gradient(call, target()))
                errors[path] = difference(call, truth[path])
        self.row["weight_error"] = max((off for off, _ in errors.values()), default=None)
        self.row["gradient_error"] = max((off for _, off in errors.values()), default=None)
        lacking = [path for path in self.executed if path not in errors]
        off = [path for path, (_, error) in errors.items() if not error <= LIMITS["gradients"]]
        self.row["gradients"] = bool(errors) and not lacking and not off
        if off:
            worst = max(off, key=lambda path: errors[path][1])
            noted(self.row, f"∂A is off at {len(off)} sites, by {errors[worst][1]:.1e} at {worst}")
        if [path for path in lacking if path in watched]:
            noted(self.row, f"autograd has no softmax to compare with at {lacking[0]}")

    def eager(self) -> None:
        """The same capture on the copy that attends eagerly."""
        assert self.copy is not None
        trace = recorded(self.copy.case)
        rows, outputs, _ = errors_of(trace)
        same = trace.meta["sites"].keys() == self.trace.meta["sites"].keys()
        self.row["eager"] = same and rows <= LIMITS["rows"] and outputs <= LIMITS["outputs"]

    def atlas(self) -> None:
        layout = self.case.layout
        if layout.unmapped:
            noted(self.row, layout.unmapped)
        if not any(span.tokens or span.patches for span in layout.images):
            return
        self.row["atlas"] = "unverified"
        found = verified(self.case)
        self.row["percentile"] = None if math.isnan(found.percentile) else found.percentile
        self.row["rate"] = None if math.isnan(found.rate) else found.rate
        if found.rate >= LIMITS["rate"] or found.percentile >= LIMITS["percentile"]:
            self.row["atlas"] = "verified"
        if self.case.images:
            self.row["marked"] = marked_rate(self.case)

    def relevancy(self) -> None:
        """One line of code, through to the pixels."""
        if not self.case.layout.images:
            return
        found = self.case.explain("relevancy", 0)
        drawn = found.pixels(0)
        right = tuple(drawn.shape) == self.case.layout.images[0].size
        if right and bool(drawn.isfinite().all()) and bool((drawn != 0).any()):
            self.row["relevancy"] = "tokens" if found.patches is None else "patches"
        else:
            noted(
                self.row,
                f"the relevancy map, {tuple(drawn.shape)}, is empty, not finite or of the wrong size",
            )


def _through_pair(name: str, attention: str | None = None) -> _Subject:
    from zoo import pairs

    import lvlm_probe as lp

    model, processor = pairs.make(name, attention=attention)
    case = lp.Probe(model, processor).case(picture(), QUESTION, answer=ANSWER)
    return _Subject(case, lambda: _through_pair(name, "eager"))


def _made_by_hand(name: str, attention: str = "sdpa") -> _Subject:
    import zoo

    import lvlm_probe as lp

    model = zoo.build(name, attention=attention)
    made = zoo.inputs(name, model)
    # Where all of the answer is filled in at once, nothing comes before its first token: it counts as given.
    case = lp.Probe(model).case_from_inputs(made.inputs, max(made.answer_start, 1))
    return _Subject(case, lambda: _made_by_hand(name, "eager"))
