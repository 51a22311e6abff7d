"""What every model of the zoo needs, imported: for processes that are forked from one that did.

Nothing is run here, so no thread is started.
"""

from __future__ import annotations

from zoo import shim

shim.install()

import torch  # noqa: E402, F401
import transformers  # noqa: E402
from transformers import (  # noqa: E402, F401 - loaded on first use otherwise
    AutoModelForImageTextToText,
    GenerationMixin,
    PreTrainedModel,
    ProcessorMixin,
)

transformers.logging.set_verbosity_error()
