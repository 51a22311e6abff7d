"""Pages: one trace as a file that explains itself, and an index of pictures beside it.

:func:`write_report` makes of a trace one HTML file that needs no server, no network and no model.
"""

from lvlm_probe.report.index import Entry, write_page
from lvlm_probe.report.page import report_html, write_report

__all__ = ["Entry", "report_html", "write_page", "write_report"]
