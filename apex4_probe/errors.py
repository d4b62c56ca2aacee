"""The one exception that a user is meant to read."""


class ApexError(Exception):
    """Bad input or environment: one sentence saying what, where and what to do. The CLI prints it and exits with 2."""


class ProfileError(ApexError):
    """A deployment profile that cannot be read, or does not hold here; names the field and both values."""
