"""Sphinx reads this; `make docs` builds the pages."""

project = "opd_jax"
author = "the opd_jax authors"
extensions = ["myst_parser", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme = "sphinx_book_theme"
html_title = "opd_jax"
exclude_patterns = ["_build", "requirements.txt"]
