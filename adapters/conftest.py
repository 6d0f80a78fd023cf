"""Doctests of adapters whose host is not installed are left out."""

from importlib.util import find_spec

collect_ignore = [
    "conftest.py",
    *([] if find_spec("aif360") else ["fairtrim_adapters/aif360"]),
    *([] if find_spec("onnxruntime") and find_spec("onnxscript") else ["fairtrim_adapters/onnx_export.py"]),
]
