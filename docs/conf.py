"""Sphinx: the pages of this folder as a site."""

project = "mipkd-pipeline"
extensions = ["myst_parser"]
myst_heading_anchors = 3  # links like page.md#heading, as GitHub has them
html_theme = "furo"
html_copy_source = False
highlight_language = "none"
exclude_patterns = ["_build"]
