"""The package's own error for bad input data."""


class DataError(ValueError):
    """Input data cannot be used; the message names the file or value and what to do about it."""
