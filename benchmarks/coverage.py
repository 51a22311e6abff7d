"""What works with each architecture: every one that ``AutoModelForImageTextToText`` knows, one row each.

    python benchmarks/coverage.py [names] [--jobs N] [--limit SECONDS] [--json FILE] [--out FOLDER]

Each model runs in a process of its own; a crash, or a model that takes too long, is a row, too.
"""

from __future__ import annotations

if __name__ == "coverage":
    raise ImportError("this is a script; who imports its name looks for the package of that name")

from coverage_survey import main

if __name__ == "__main__":
    main()
