"""The site: `make docs`. Pages that describe code are made from it by tools/docs."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tools.docs.docstrings import as_rst  # noqa: E402
from tools.docs.pages import write  # noqa: E402

os.environ.setdefault("COLUMNS", "100")  # of the verbs' help
write(ROOT / "docs" / "generated")

project = "nitrodistill"
html_title = "nitrodistill"
html_theme = "furo"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["notebooks"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_use_ivar = True
napoleon_use_rtype = False
pygments_style = "friendly"


def _escape(app, what, name, obj, options, lines):
    lines[:] = as_rst("\n".join(lines)).splitlines()


def setup(app):
    app.connect("autodoc-process-docstring", _escape, priority=100)  # before napoleon
