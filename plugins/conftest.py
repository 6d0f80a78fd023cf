"""Doctests of modules whose extra is not installed are left out."""

from importlib.util import find_spec

collect_ignore = ["conftest.py", *([] if find_spec("cma") else ["fairtrim/repair/layerwise_optimization.py"])]
