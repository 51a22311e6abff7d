"""The demo model: a small LLaVA trained on scenes whose every answer has known evidence.

The folder that this file is in is also the model's: ``AutoModelForImageTextToText.from_pretrained(FOLDER)`` and
``AutoProcessor.from_pretrained(FOLDER)`` load it, and nothing else in the package treats it specially.
``scenes`` and ``questions`` make inputs with their ground truth, ``examples`` lists some that are shipped as files,
``train`` and ``evaluate`` are the commands that made the weights and ``MODEL_CARD.md``.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
"""The model's folder."""
