"""Tables with string columns, as AIF360 takes them under pandas 3."""

from __future__ import annotations

import warnings

import pandas as pd

from fairtrim import InputError
from fairtrim.arguments import few_of

__all__ = ["strings_as_objects"]


def strings_as_objects(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose string columns have the type object, which AIF360 expects.

    pandas 3 reads strings as a type of their own, of which ``StandardDataset`` raises ``Cannot interpret
    '<StringDtype...>' as a data type`` where a label or a protected attribute has it. It takes this function as
    ``custom_preprocessing=strings_as_objects``, too, and so does ``AdultDataset``. Categories stay as they are.

    Args:
        table: A data frame; left as it is.

    Returns:
        A copy; missing values stay missing. A ``UserWarning`` names the columns that were cast, if any.

    Raises:
        InputError: It is no data frame.

    Example:
        >>> from aif360.datasets import StandardDataset
        >>> table = pd.DataFrame({"age": [31, 52], "sex": ["Female", "Male"], "hired": ["yes", "no"]})
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")  # says that sex and hired were cast
        ...     cast = strings_as_objects(table)
        >>> StandardDataset(cast, "hired", ["yes"], ["sex"], [["Male"]]).labels.tolist()
        [[1.0], [0.0]]
    """
    if not isinstance(table, pd.DataFrame):
        raise InputError(f"table is a {type(table).__name__}; expected a pandas.DataFrame")
    found = {name: dtype for name, dtype in table.dtypes.items() if isinstance(dtype, pd.StringDtype)}
    if found:
        warnings.warn(
            f"cast from strings (dtype {next(iter(found.values()))}) to object, as AIF360 expects: "
            f"{few_of([repr(name) for name in found])}",
            stacklevel=2,
        )
    return table.astype(dict.fromkeys(found, object))
