"""How the documentation is built: sphinx-build -W --keep-going -b html docs docs/_build."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

import gallery  # noqa: E402  # beside this file, in extensions/

import fairtrim  # noqa: E402

project = "fairtrim"
author = "the fairtrim developers"
copyright = "the fairtrim developers, MIT licence"  # noqa: A001  # Sphinx's name for it
release = version = fairtrim.__version__

extensions = [
    "docstrings",
    "mathml",
    "myst_nb",  # with myst_parser inside
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = [
    "_build",
    "gallery_sources",
    "gallery/*.ipynb",  # downloads, not pages
    "**sg_execution_times.rst",
]  # the last: pages that load scripts from elsewhere
nitpicky = False

# Pages.

myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
math_renderer_name = html_math_renderer = "mathml"

# Notebooks are shown as they are stored: python docs/extensions/notebooks.py runs them.

nb_execution_mode = "off"

# Names of the library, from their docstrings.

autodoc_default_options = {
    "members": True,
    "show-inheritance": True,
    "exclude-members": "set_fit_request, set_predict_request, set_score_request",
}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
add_module_names = False
toc_object_entries_show_parents = "hide"

# Examples: copies of the scripts, run by sphinx-gallery; extensions/gallery.py says which, and with what arguments.

gallery.switch_off_bars()
gallery.write_sources(HERE.parent / "examples", HERE / "gallery_sources")
sys.path.insert(0, str(HERE / "gallery_sources"))  # scripts import from each other
sphinx_gallery_conf = {
    "examples_dirs": "gallery_sources",
    "gallery_dirs": "gallery",
    "filename_pattern": gallery.FILENAME_PATTERN,
    "within_subsection_order": "gallery.Order",
    "download_all_examples": False,
    "show_signature": False,
    "show_memory": False,
    "min_reported_time": 0,
    "remove_config_comments": True,
    "abort_on_example_error": False,
    "only_warn_on_example_error": False,
}

# Looks.

html_theme = "pydata_sphinx_theme"
html_title = "fairtrim"
html_static_path = ["assets"]
html_css_files = ["fairtrim.css"]
html_sidebars = {"*": []}  # pages outside a section have nothing to list there
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "show_toc_level": 2,
    "show_prev_next": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "header_links_before_dropdown": 9,
}
