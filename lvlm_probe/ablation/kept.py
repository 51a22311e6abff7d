"""Worths that are never computed twice: in memory and, where a file is given, on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from lvlm_probe.ablation.asking import Asker
from lvlm_probe.ablation.forward import Changed
from lvlm_probe.ablation.ledger import Ledger, digest
from lvlm_probe.probe import Case

__all__ = ["Kept", "Progress", "case_digest"]

Progress = Callable[[int, int], None]


class Kept:
    """Worths by key; a key says all that is changed.

    Args:
        asker: Asks the model.
        change: From a key to what it changes.
        cache: A file that keeps the worths; several games may share it.
        digest: Of all that the worths depend on, beside the key.
        description: What is asked, for whoever opens the file.
        progress: Called with keys done and keys in all, of each request.

    Attributes:
        computed: Keys for which the model ran.

    Raises:
        OutputError: If the cache cannot be written.
    """

    def __init__(
        self,
        asker: Asker,
        change: Callable[[bytes], Changed],
        cache: str | Path | None,
        digest: str,
        description: Mapping[str, Any],
        progress: Progress | None = None,
    ) -> None:
        self.asker, self.change, self.progress = asker, change, progress
        self.ledger = None if cache is None else Ledger(Path(cache), digest, description)
        self._worths = {} if self.ledger is None else self.ledger.load()
        self.computed = 0

    def __call__(self, keys: Sequence[bytes]) -> Float[Tensor, "K C"]:
        """The worths of each key; new ones batch by batch in the order given, and each batch is kept once it is done.

        A request that was cut short and is made again finds the first batches there, and has the others to the same bits.
        """
        fresh = list(dict.fromkeys(key for key in keys if key not in self._worths))
        for start in range(0, len(fresh), self.asker.batch):
            batch = fresh[start : start + self.asker.batch]
            worths: NDArray[np.float64] = self.asker.ask([self.change(key) for key in batch])[
                ..., 0
            ].numpy()
            rows = dict(zip(batch, worths, strict=True))
            if self.ledger is not None:
                self.ledger.add(rows)
            self._worths.update(rows)
            self.computed += len(batch)
            if self.progress is not None:
                self.progress(start + len(batch), len(fresh))
        return torch.from_numpy(np.stack([self._worths[key] for key in keys]))


def case_digest(case: Case, facts: Mapping[str, Any], arrays: Sequence[NDArray[Any]] = ()) -> str:
    """Of a case's model, input and pictures, and what else worths depend on."""
    told = {"model": case.probe.provenance, "answer_start": case.layout.answer_start, **facts}
    own = [tensor.float().cpu().numpy() for _, tensor in sorted(case.inputs.items())]
    return digest(told, [*own, *(np.asarray(one) for one in case.images), *arrays])
