"""The error of data that cannot be used."""


class DataError(ValueError):
    """Prepared data is missing, half-written or of another kind than asked for; the message names
    file and mend."""
