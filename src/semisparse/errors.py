"""Exceptions: each message is one sentence of what was wrong, with the values, and what to do."""


class SemisparseError(Exception):
    """Base of every error that semisparse raises on purpose."""


class ConfigError(SemisparseError, ValueError):
    """A configuration value is out of range, unknown, or of another version."""


class MaskError(SemisparseError, ValueError):
    """A mask, score map or source map does not fit what it is used for."""


class ModelError(SemisparseError, ValueError):
    """A model cannot be masked or exported as it is."""


class DataError(SemisparseError, ValueError):
    """A data set is absent, empty or unreadable."""


class TrainingError(SemisparseError, RuntimeError):
    """Training cannot go on: the loss diverged, or the processes of a run disagree."""


class ExportError(SemisparseError, RuntimeError):
    """An exported file would not compute what the torch model computes, or cannot be written."""


class FileFormatError(SemisparseError, ValueError):
    """A model file is corrupt, truncated, or not one of ours."""


class LibraryError(SemisparseError, RuntimeError):
    """The operator library is missing, cannot be loaded, or refused a request."""


class MissingExtraError(SemisparseError, ImportError):
    """A feature needs an optional dependency that is not installed."""
