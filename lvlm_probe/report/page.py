"""One trace as one HTML file: no server, no network, no model."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_probe.files import write_text
from lvlm_probe.report.document import BUDGET, RECIPES, document
from lvlm_probe.viewer import script, style

if TYPE_CHECKING:
    from lvlm_probe.recipes.contribution import Grounding
    from lvlm_probe.trace import Trace

__all__ = ["report_html", "write_report"]

_HERE = Path(__file__).parent


def write_report(
    trace: Trace,
    path: str | Path,
    *,
    recipes: Sequence[str] = RECIPES,
    grounding: Grounding | None = None,
    budget: int = BUDGET,
) -> Path:
    """Write a trace's report.

    Args:
        trace: What is shown.
        path: Of the file; another one there is replaced.
        recipes: Trace recipes to switch between.
        grounding: Of the same case, for what only the model can tell.
        budget: Bytes for the scores of layers and heads, before base64; what does not fit is left out and named.

    Raises:
        RecipeError: If a recipe is unknown or needs the model, or the grounding is of another answer.
        OutputError: If the file cannot be written.
    """
    page = report_html(trace, recipes=recipes, grounding=grounding, budget=budget)
    return write_text(Path(path), page)


def report_html(
    trace: Trace,
    *,
    recipes: Sequence[str] = RECIPES,
    grounding: Grounding | None = None,
    budget: int = BUDGET,
) -> str:
    """The page of :func:`write_report`; arguments as there.

    Raises:
        RecipeError: If a recipe is unknown or needs the model, or the grounding is of another answer.
    """
    told = document(trace, recipes, grounding, budget)
    code = script() + _text("report.js")
    # Nothing may be fetched, and no script may run but this one, whatever a model wrote.
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        f"script-src 'sha256-{_digest(code)}'"
    )
    title = _line(told["prompt"]) or "A trace"
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)} → {escape(told['answer'])}</title>",
            f"<style>{style()}{_text('report.css')}</style>\n</head>\n<body>",
            _body(told, title),
            f'<script type="application/json" id="report-data">{_json(told)}</script>',
            f"<script>{code}</script>\n</body>\n</html>\n",
        ]
    )


def _body(told: dict[str, Any], title: str) -> str:
    about = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in told["about"]
    )
    missing = "".join(
        f"<li><b>{escape(one['what'])}</b>: {escape(one['why'])}</li>" for one in told["missing"]
    )
    left_out = (
        f'<h2 style="margin-top:16px">Not in this report</h2><ul>{missing}</ul>' if missing else ""
    )
    picture = (
        '<div id="maps"></div>'
        if told["images"]
        else '<div id="maps"></div><p class="quiet">There is no picture that tokens can be placed on; words are '
        "shaded all the same.</p>"
    )
    return f"""<header>
<div id="thumbs"></div>
<div class="asked"><h1 dir="auto">{escape(title)}</h1><p>Which pixels and words made each word of the answer? Point at a word, or move
with the arrow keys; Enter keeps it.</p></div>
<button type="button" class="button" id="theme">Light / dark</button>
</header>
<main>
<noscript><p class="card">The answer was: {escape(told["answer"])}. The maps are drawn by this page's own script, which is
switched off here.</p></noscript>
<section class="card"><h2>Answer</h2><div id="answer" dir="auto"></div>
<div class="control" id="target-part" hidden><label for="target">What is explained</label><select id="target"></select></div>
<p id="status" role="status"></p></section>
<div id="look">
<section class="card" aria-label="Map">
<fieldset id="recipes-part"><legend><h2>Explained by</h2></legend><div class="choices" id="recipes"></div></fieldset>
<button type="button" class="button" id="back" hidden></button>
{picture}
<div class="control" id="layer-part"><label for="layer">Layer</label>
<input type="range" id="layer" min="0" max="1" value="1" step="1"><output id="layer-name" for="layer"></output></div>
<p class="quiet" id="recipe-about"></p>
</section>
<div class="side">
<section class="card" id="question-part"><h2>Question</h2><div id="question" dir="auto"></div>
<p class="quiet">Shaded by how much each word counted, among words.</p></section>
<section class="card" id="numbers-part"><h2 id="numbers-of"></h2><dl id="numbers"></dl></section>
<section class="card" id="heads-part"><h2>Heads</h2><div id="heads"></div>
<p class="quiet">Pick a head to see what it attends to; pick it again to go back.</p></section>
</div>
</div>
<section class="card" id="layers-part"><h2>Layers</h2><div id="layers"></div>
<p class="quiet">Pick a cell to see the map after that layer.</p></section>
<details class="card"><summary>About this trace</summary><table><tbody>
{about}
</tbody></table>{left_out}</details>
</main>
<footer>Made by lvlm_probe from one trace. Scores compare within one map, not across words or recipes. Layers and heads are kept to
1/255 of their map's range.</footer>"""


def _json(told: dict[str, Any]) -> str:
    """JSON that an HTML parser cannot read an end of the element, or a comment, in."""
    text = json.dumps(told, allow_nan=False, separators=(",", ":"))  # all but ASCII is escaped
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _line(text: str) -> str:
    return " ".join(text.split())


@cache
def _text(name: str) -> str:
    return (_HERE / name).read_text("utf-8")


def _digest(code: str) -> str:
    return base64.b64encode(hashlib.sha256(code.encode()).digest()).decode("ascii")
