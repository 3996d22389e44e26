"""The package's own errors: what a user can fix. The scripts print them as one line."""


class IGPTError(ValueError):
    """A flag, folder, checkpoint or the Hub cannot be used as asked; the message names the value and the remedy."""


class DataError(IGPTError):
    """A file or image cannot be used; the message names it and what to do about it."""
