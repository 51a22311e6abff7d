"""Trains the demo model: ``python -m lvlm_probe.demo.train``.

Two phases (see ``schedule``) on scenes of the generator and on easy-VQA. Linear heads that read off each patch what
it shows are trained along with the model, and dropped at the end.

A training that was interrupted goes on from its last checkpoint when the command is given again.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import (
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from lvlm_probe.demo import FOLDER, easy_vqa
from lvlm_probe.demo.architecture import WIDTH, build_model, build_processor
from lvlm_probe.demo.packing import (
    COLOUR_WORDS,
    IGNORED,
    PREFIX,
    SHAPE_WORDS,
    Asked,
    Batch,
    Encoder,
    Shown,
    Source,
)
from lvlm_probe.demo.scenes import SIZE
from lvlm_probe.demo.schedule import PHASES, Phase, decay, place, scaled

CHECKPOINT = Path("build/demo-checkpoint.safetensors")
"""Where a training that is under way is kept, under the working directory."""

_SAVE_EVERY = 250
_REPORT_EVERY = 100
_BETAS = (0.9, 0.98)
_DECAY = 0.01
_CLIP = 1.0


class PatchHeads(nn.Module):
    """Reads colour, shape and centre off each patch of the vision encoder's output, linearly."""

    def __init__(self) -> None:
        super().__init__()
        self.colour = nn.Linear(WIDTH, len(COLOUR_WORDS) + 1)
        self.shape = nn.Linear(WIDTH, len(SHAPE_WORDS) + 1)
        self.centre = nn.Linear(WIDTH, 2)

    def forward(self, patches: Tensor, batch: Batch) -> Tensor:
        """The loss on patches.

        Args:
            patches: The encoder's output without the class token, [B, P, D].
            batch: What the patches show.

        Returns:
            A scalar: cross entropies in nats plus twice the centres' mean absolute error, in half images.
        """
        colour = _cross_entropy(self.colour(patches), batch.patch_colours)
        shape = _cross_entropy(self.shape(patches), batch.patch_shapes)
        shown = (batch.patch_shapes >= 0) & (batch.patch_shapes < len(SHAPE_WORDS))
        centre = functional.l1_loss(self.centre(patches)[shown], batch.patch_centres[shown])
        return colour + shape + 2.0 * centre


class Trainer:
    """The state of a training, and its steps.

    Args:
        seed: Decides weights and data.
        phases: The schedule.
        source: Where batches come from.
        processor: Saved with the model.
    """

    def __init__(
        self, seed: int, phases: Sequence[Phase], source: Source, processor: LlavaProcessor
    ) -> None:
        torch.manual_seed(seed)
        self.seed = seed
        self.phases = tuple(phases)
        self.source = source
        self.processor = processor
        self.model: LlavaForConditionalGeneration = build_model()
        self.model.set_attn_implementation("sdpa")
        self.heads = PatchHeads()
        self.parts = nn.ModuleDict({"model": self.model, "heads": self.heads})
        self.step = 0
        self.optimizers = self._optimizers()

    @property
    def total(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def fetch(self, step: int) -> Batch:
        """The batch of a step.

        Raises:
            ValueError: If the training has no such step.
        """
        phase, _ = place(self.phases, step)
        return self.source.batch(step, phase.scenes, phase.easy, phase.weights)

    def run(self, batch: Batch) -> tuple[dict[str, float], dict[str, list[bool]]]:
        """One step.

        Returns:
            The losses in nats, and for each kind whether each of its questions was answered exactly, every token
            given the right ones before it.
        """
        phase, done = place(self.phases, self.step)
        if done == 0:
            self.optimizers = self._optimizers()
        share = decay(phase, done)
        for optimizer, highest in zip(
            self.optimizers, (phase.rate, phase.rate_others), strict=True
        ):
            for group in optimizer.param_groups:
                group["lr"] = highest * share
        right: dict[str, list[bool]] = {}
        losses: dict[str, Tensor] = {}
        # The matrix products in bfloat16, sums and weights in float32: a third less time.
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.set_grad_enabled(phase.patches > 0):
                patches = self.model.model.vision_tower(batch.pixels).last_hidden_state[:, 1:]
            if phase.patches:
                losses["patches"] = phase.patches * self.heads(patches, batch)
            if phase.answers:
                logits = self.logits(self.model.model.multi_modal_projector(patches), batch).float()
                losses["answers"] = _answer_loss(logits, batch)
                right = _exact(logits, batch)
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(self.parts.parameters(), _CLIP)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return {name: loss.item() for name, loss in losses.items()}, right

    def logits(self, image: Tensor, batch: Batch) -> Tensor:
        """What the stock model computes for a batch, with its visual tokens at hand; [B, N, V].

        Args:
            image: The visual tokens, [B, P, D].
            batch: The rest.
        """
        inner = self.model.model
        embeds = inner.get_input_embeddings()(batch.ids)
        first = PREFIX - image.shape[1]
        embeds = torch.cat([embeds[:, :first], image, embeds[:, PREFIX:]], dim=1)
        hidden = inner.language_model(
            inputs_embeds=embeds,
            attention_mask=batch.mask(),
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        return self.model.lm_head(hidden)

    def _optimizers(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        """Muon for the matrices of layers and projector, AdamW for everything else."""
        matrices = [p for name, p in self._parameters().items() if _is_matrix(name, p)]
        others = [p for name, p in self._parameters().items() if not _is_matrix(name, p)]
        return (
            torch.optim.Muon(matrices, weight_decay=_DECAY, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, betas=_BETAS, weight_decay=_DECAY),
        )

    def save(self, path: Path) -> None:
        """Writes a checkpoint; the file is whole or the old one."""
        tensors = {f"weight:{name}": value for name, value in self._parameters().items()}
        for name, parameter in self._parameters().items():
            for optimizer in self.optimizers:
                for key, value in optimizer.state.get(parameter, {}).items():
                    tensors[f"{key}:{name}"] = value
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(
            {name: value.detach().contiguous() for name, value in tensors.items()},
            partial,
            metadata={"step": str(self.step), "identity": self._identity()},
        )
        partial.replace(path)

    def resume(self, path: Path) -> bool:
        """Takes up a checkpoint of the same seed and schedule; False if there is none."""
        if not path.exists():
            return False
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            if metadata["identity"] != self._identity():
                return False
            self.step = int(metadata["step"])
            parameters = self._parameters()
            for entry in file.keys():  # noqa: SIM118 - it is no mapping
                key, _, name = entry.partition(":")
                parameter, value = parameters[name], file.get_tensor(entry)
                if key == "weight":
                    parameter.data.copy_(value)
                else:
                    optimizer = self.optimizers[0 if _is_matrix(name, parameter) else 1]
                    optimizer.state[parameter][key] = value
        return True

    def _parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.parts.named_parameters())

    def _identity(self) -> str:
        return json.dumps([self.seed, [repr(phase) for phase in self.phases]])

    def export(self, folder: Path) -> None:
        """Writes the model in float16, and its processor, as ``from_pretrained`` reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        model = build_model()
        model.load_state_dict(self.model.state_dict())
        model.half().save_pretrained(folder)
        (folder / "model.safetensors").chmod(0o644)  # it is written for its owner alone
        self.processor.save_pretrained(folder)


def _is_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and (".layers." in name or "projector" in name)


def _cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(scores.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def _answer_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Mean cross entropy of the answers' tokens, a token of an answer of n tokens weighing n ** -0.5."""
    counted = batch.labels != IGNORED
    losses = functional.cross_entropy(logits[counted], batch.labels[counted], reduction="none")
    rows = torch.arange(len(batch.ids))[:, None].expand_as(batch.ids)[counted]
    question = rows * (int(batch.segments.max()) + 1) + batch.segments[counted]
    weights = torch.bincount(question)[question].float().rsqrt()
    return (losses * weights).sum() / weights.sum()


def _exact(logits: Tensor, batch: Batch) -> dict[str, list[bool]]:
    right: dict[str, list[bool]] = defaultdict(list)
    fine = ((logits.argmax(-1) == batch.labels) | (batch.labels == IGNORED)).numpy()
    segments = batch.segments.numpy()
    for row, kinds in enumerate(batch.kinds):
        for number, kind in enumerate(kinds, 1):
            right[kind].append(bool(fine[row][segments[row] == number].all()))
    return right


def _easy_rows(processor: LlavaProcessor) -> list[Asked]:
    """easy-VQA's training images as the processor makes them, with their questions."""
    easy_vqa.fetch()
    items = easy_vqa.load("train")
    pixels = processor.image_processor([item.image for item in items], return_tensors="np")
    arrays = np.asarray(pixels["pixel_values"], dtype=np.float32)
    return [
        Asked(
            array,
            [("easy-vqa", question, answer) for question, answer in item.questions],
            [easy_object(item)],
        )
        for item, array in zip(items, arrays, strict=True)
        if item.shape is not None
    ]


def easy_object(item: easy_vqa.EasyVqaItem) -> Shown:
    """The one shape of an easy-VQA image, as the processor scales it."""
    mask = np.asarray(Image.fromarray(item.mask).resize((SIZE, SIZE)))
    rows, columns = np.nonzero(mask)
    centre = (float(columns.mean()) + 0.5, float(rows.mean()) + 0.5)
    return Shown(item.colour, str(item.shape), mask, centre)


def keep_memory() -> None:
    """Asks glibc to keep freed memory; the steps take half the time."""
    with_glibc = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if with_glibc is not None:
        with_glibc(ctypes.c_int(-4), ctypes.c_int(0))  # M_MMAP_MAX: nothing by mmap
        with_glibc(ctypes.c_int(-1), ctypes.c_int(2**31 - 1))  # M_TRIM_THRESHOLD: give nothing back
        with_glibc(ctypes.c_int(-2), ctypes.c_int(2**29))  # M_TOP_PAD: grow by 512 MiB


def train(trainer: Trainer, checkpoint: Path, console: Console) -> None:
    """Runs the steps that are left, with a progress bar and a line every hundred steps."""
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    right: dict[str, list[bool]] = defaultdict(list)
    with (
        Progress(*columns, TimeRemainingColumn(), console=console) as progress,
        ThreadPoolExecutor(max_workers=1) as pool,
    ):
        task = progress.add_task("training", total=trainer.total, completed=trainer.step)
        ahead = [pool.submit(trainer.fetch, trainer.step)] if trainer.step < trainer.total else []
        while trainer.step < trainer.total:
            batch = ahead.pop().result()
            if trainer.step + 1 < trainer.total:
                ahead.append(pool.submit(trainer.fetch, trainer.step + 1))
            progress.update(task, description=place(trainer.phases, trainer.step)[0].name)
            losses, exact = trainer.run(batch)
            progress.update(task, completed=trainer.step)
            for kind, values in exact.items():
                right[kind].extend(values)
            if trainer.step % _REPORT_EVERY == 0:
                line = [f"{name} {value:.3f}" for name, value in losses.items()]
                line += [f"{kind} {np.mean(values):.3f}" for kind, values in sorted(right.items())]
                progress.console.print(f"step {trainer.step}: {', '.join(line)}")
                right.clear()
            if trainer.step % _SAVE_EVERY == 0:
                trainer.save(checkpoint)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Train the demo model and write its folder.")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="decides weights and data; 0 to 255")
    parser.add_argument(
        "--steps-scale", type=float, default=1.0, help="multiplies every phase's steps"
    )
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="file to resume from")
    options = parser.parse_args(arguments)

    torch.set_num_threads(2)
    keep_memory()
    console = Console(width=None if sys.stdout.isatty() else 400)
    processor = build_processor()
    phases = scaled(PHASES, options.steps_scale)
    source = Source(Encoder(processor), options.seed, _easy_rows(processor))
    trainer = Trainer(options.seed, phases, source, processor)
    if trainer.resume(options.checkpoint):
        console.print(f"going on from step {trainer.step} of {options.checkpoint}")
    train(trainer, options.checkpoint, console)
    trainer.export(options.out)
    console.print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
