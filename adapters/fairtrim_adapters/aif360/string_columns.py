"""Tables with string columns, as AIF360 takes them under pandas 3."""

from __future__ import annotations

import logging

import pandas as pd

from fairtrim import InputError
from fairtrim.arguments import few_of

__all__ = ["strings_as_objects"]

_logger = logging.getLogger("fairtrim.aif360")


def strings_as_objects(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose string columns have the type object, which AIF360 expects.

    pandas 3 reads strings as a type of their own, of which ``StandardDataset`` raises ``Cannot interpret
    '<StringDtype...>' as a data type`` where a label or a protected attribute has it. It takes this function as
    ``custom_preprocessing=strings_as_objects``, too, and so does ``AdultDataset``. Categories stay as they are.

    Args:
        table: A data frame; left as it is.

    Returns:
        A copy; missing values stay missing. A note of the logger ``fairtrim.aif360`` names the
            columns that were cast, if any.

    Raises:
        InputError: It is no data frame.

    Example:
        >>> from aif360.datasets import StandardDataset
        >>> table = pd.DataFrame({"age": [31, 52], "sex": ["Female", "Male"], "hired": ["yes", "no"]})
        >>> StandardDataset(strings_as_objects(table), "hired", ["yes"], ["sex"], [["Male"]]).labels.tolist()
        [[1.0], [0.0]]
    """
    if not isinstance(table, pd.DataFrame):
        raise InputError(f"table is a {type(table).__name__}; expected a pandas.DataFrame")
    found = {name: dtype for name, dtype in table.dtypes.items() if isinstance(dtype, pd.StringDtype)}
    if found:
        _logger.info(
            "cast from strings (dtype %s) to object, as AIF360 expects: %s",
            next(iter(found.values())),
            few_of([repr(name) for name in found]),
        )
    return table.astype(dict.fromkeys(found, object))
