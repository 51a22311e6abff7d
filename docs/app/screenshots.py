"""Pictures of the app's tabs for the documentation: ``python docs/app/screenshots.py [TAB ...]``.

Serves the demo model, does in each tab what a person would, and takes a picture beside this file. Needs Chromium.
"""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import expect

from lvlm_probe.demo.examples import load_examples

HERE = Path(__file__).parent
EXAMPLES = {example.kind: example for example in load_examples()}
expect.set_options(timeout=300_000)
