"""The model, or the traces, that all sessions of the app share, and what was computed with them."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from lvlm_probe.app.cache import Cache
from lvlm_probe.app.jobs import Job, Report
from lvlm_probe.app.turnstile import Turnstile
from lvlm_probe.attribution import Attribution
from lvlm_probe.capture import Capture
from lvlm_probe.case import Case
from lvlm_probe.conversation import Sampling, Turn
from lvlm_probe.demo.examples import Example
from lvlm_probe.errors import TraceError
from lvlm_probe.layout import TokenLayout
from lvlm_probe.probe import Probe
from lvlm_probe.recipe import TraceRecipe, find_recipe
from lvlm_probe.store import load_trace
from lvlm_probe.target import Target
from lvlm_probe.trace import Trace

__all__ = ["Question", "Service"]

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Question:
    """One question with its answer: what every tab looks at.

    Attributes:
        key: Digest of the model, the pictures, the whole prompt and the answer.
        prompt: As the user wrote it.
        images: Those that were asked about, earlier turns' included.
        words: Text of each position.
        layout: Which positions are which.
        case: Bound to the model; None if there is only a trace.
        trace: Where it came from a file.
    """

    key: str
    prompt: str
    images: tuple[Image.Image, ...]
    words: tuple[str, ...]
    layout: TokenLayout
    case: Case | None = None
    trace: Trace | None = None

    @property
    def answer_tokens(self) -> tuple[str, ...]:
        """Text of each answer token."""
        return self.words[self.layout.answer_start :]

    @property
    def answer(self) -> str:
        """The answer's text."""
        return "".join(self.answer_tokens).strip()

    def need_case(self) -> Case:
        """The case.

        Raises:
            TraceError: If there is only a trace.
        """
        if self.case is None:
            raise TraceError(
                "this runs the model, and here is only a trace: start the app with --model, and load the trace there"
            )
        return self.case


class Service:
    """One model for all sessions.

    Args:
        probe: The model; None to look at traces only.
        folder: For whatever is written; a temporary one if None.
        views: Results to keep.
        traces: Traces to keep, in files.
        examples: Pictures with questions to begin with.
        shelf: A trace, or a folder of traces, that every session finds open.

    Attributes:
        turnstile: Who may use the model now.
        folder: Everything that is written lies in it; it goes with :meth:`close`.
    """

    def __init__(
        self,
        probe: Probe | None,
        folder: Path | None = None,
        views: int = 192,
        traces: int = 24,
        examples: Sequence[Example] = (),
        shelf: Path | None = None,
    ) -> None:
        self.probe, self.examples = probe, examples
        self.shelf = _traces_in(shelf)
        self.folder = Path(tempfile.mkdtemp(prefix="lvlm-probe-app-")) if folder is None else folder
        self.turnstile = Turnstile()
        self._views = Cache(views)
        self._traces = Cache(traces, dropped=_forget)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def name(self) -> str:
        """What is looked at."""
        return "traces" if self.probe is None else self.probe.name

    def need_probe(self) -> Probe:
        """The probe.

        Raises:
            TraceError: If the app shows traces only.
        """
        if self.probe is None:
            raise TraceError("this app shows traces and has no model: start it with --model to ask")
        return self.probe

    def ask(
        self,
        pictures: Sequence[Image.Image],
        prompt: str,
        answer: str | None = None,
        *,
        history: Sequence[Turn] = (),
        sampling: Sampling | None = None,
        max_new_tokens: int = 128,
        stop: Callable[[], bool] | None = None,
    ) -> Question:
        """Ask the model; arguments as for :meth:`Probe.case`."""
        probe = self.need_probe()
        with self.turnstile.front():
            case = probe.case(
                list(pictures), prompt, answer, history=history, sampling=sampling, max_new_tokens=max_new_tokens,
                stop=stop,
            )  # fmt: skip
        return self.question(case)

    def question(self, case: Case) -> Question:
        """A question of a case that is already there."""
        told = hashlib.sha256(repr((case.probe.name, case.text, case.ids.tolist())).encode())
        for picture in case.images:
            told.update(repr(picture.size).encode() + picture.tobytes())
        return Question(
            told.hexdigest(), case.prompt, case.images, case.words, case.layout, case=case
        )

    def open(self, path: Path) -> Question:
        """The question of a trace file; where the app has the model it was recorded with, bound to it.

        Raises:
            TraceError: If it is no trace.
        """
        trace = load_trace(path)
        case: Case | None = None
        meta = trace.meta
        if self.probe is not None and self._same_model(trace) and meta["text"] and trace.images:
            with self.turnstile.front():
                case = _bound(self.probe, trace)
        return Question(
            str(meta["digest"]), meta["prompt"], trace.images, trace.words, trace.layout, case=case, trace=trace
        )  # fmt: skip

    def _same_model(self, trace: Trace) -> bool:
        assert self.probe is not None
        return trace.meta["model"] == self.probe.provenance["model"]

    def trace(self, question: Question) -> Trace:
        """The question's trace: the attention factors, and the gradients of each answer token's margin."""
        if question.trace is not None:
            return question.trace
        found = self._traces.get(question.key)
        if found is None:
            case = question.need_case()
            with self.turnstile.front():
                found = self._traces.get(question.key)
                if found is None:
                    folder = self.folder / "traces"
                    folder.mkdir(parents=True, exist_ok=True)
                    path = folder / f"{question.key[:24]}.safetensors"
                    found = (case.record(Capture(), path), path)
                    self._traces.put(question.key, found)
        return found[0]

    def explain(
        self, question: Question, recipe: str, target: int | Target = 0, **options: Any
    ) -> Attribution:
        """The recipe's explanation; from the trace where that holds what is needed, else live."""
        aim = Target.of(target).within(question.answer_tokens)

        def compute() -> Attribution:
            found = find_recipe(recipe)
            if isinstance(found, TraceRecipe):
                trace = self.trace(question)
                if not found.gradients or aim.name in trace.meta["targets"]:
                    return trace.explain(recipe, aim, **options)
            with self.turnstile.front():
                return question.need_case().explain(recipe, aim, **options)

        return self.cached(question, (recipe, aim, repr(sorted(options.items()))), compute)

    def cached(self, question: Question, what: Hashable, compute: Callable[[], T]) -> T:
        """What was computed of this question under this name, or is now.

        Args:
            question: Of which.
            what: All that the result depends on besides.
            compute: Runs the model inside ``turnstile.front()``, if at all.
        """
        found = self._views.get((question.key, what))
        if found is None:
            found = compute()
            self._views.put((question.key, what), found)
        return found

    def start(self, work: Callable[[Report], T]) -> Job[T]:
        """Work in the background; the caller keeps the job to watch and to cancel it."""
        return Job(work, self.turnstile)


def _bound(probe: Probe, trace: Trace) -> Case | None:
    """The trace's question put to the model again; None where that reads otherwise than what was recorded."""
    meta = trace.meta
    place = getattr(probe.processor, "image_token", None)
    if place is None or meta["text"].count(str(place)) != len(trace.images):
        return None
    case = probe.case(list(trace.images), meta["text"], meta["answer"])
    case.prompt = meta["prompt"]
    return case if case.words == trace.words else None


def _traces_in(shelf: Path | None) -> tuple[Path, ...]:
    if shelf is None:
        return ()
    if shelf.is_file():
        return (shelf,)
    found = sorted(shelf.glob("*.safetensors")) if shelf.is_dir() else []
    if not found:
        raise TraceError(
            f"there is no trace at {str(shelf)!r}: name a .safetensors file, or a folder of them, as 'lvlm-probe record' "
            "writes"
        )
    return tuple(found)


def _forget(entry: tuple[Trace, Path]) -> None:
    entry[1].unlink(missing_ok=True)
