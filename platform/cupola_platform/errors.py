"""The errors that Cupola raises on purpose, in one tree.

CupolaError                 exit status 2: one line (the value given, the rule, what to do), never a traceback
├── ConfigError             a recipe, job, setting or option breaks a rule
├── SourceError             a text source is missing, empty or unreadable
├── NotFoundError           no artifact, alias, run or file by that name
├── CorruptArtifactError    a digest does not match, or a manifest is missing or incomplete; names the file
├── StoreError              the object store refused or cannot be reached
├── RegistryError           the registry's database refused or cannot be reached
├── ServiceError            a server (Prefect, MLflow, console) cannot be started or reached
├── StageFailedError        a stage or a training process failed; names the log      (exit status 1)
└── CancelledError          the user or the server cancelled the run                 (exit status 130)
    └── DetachedError       the command ends, and its job on a cluster goes on
"""

import errno

from cupola_platform.security.urls import shown

FINGERPRINTED = False  # refuses, and computes nothing


class CupolaError(Exception):
    """Base of the tree. `str(error)` is the line shown to the user; URLs in it have no user, password or key."""

    exit_code = 2

    def __init__(self, message: str = "") -> None:
        super().__init__(shown(message))


class ConfigError(CupolaError):
    """A recipe, job, setting or option breaks a rule."""


class SourceError(CupolaError):
    """A text source is missing, empty or unreadable."""


class NotFoundError(CupolaError):
    """No artifact, alias, run or file by that name."""


class CorruptArtifactError(CupolaError):
    """A digest does not match its file, or a manifest is missing or incomplete. The message names the file."""


class StoreError(CupolaError):
    """The object store refused or cannot be reached."""


class RegistryError(CupolaError):
    """The registry's database refused or cannot be reached."""


class ServiceError(CupolaError):
    """A server (Prefect, MLflow, console) cannot be started or reached."""


class StageFailedError(CupolaError):
    """A stage or a training process failed. The message names the log."""

    exit_code = 1


class CancelledError(CupolaError):
    """The user or the server cancelled the run; finished stages are kept."""

    exit_code = 130


class DetachedError(CancelledError):
    """The command ends, and its job on a cluster goes on."""


BY_NAME: dict[str, type[CupolaError]] = {
    error.__name__: error
    for error in (
        ConfigError, SourceError, NotFoundError, CorruptArtifactError, StoreError,
        RegistryError, ServiceError, StageFailedError, CancelledError,
    )
}  # fmt: skip
"""A training process reports an error to its launcher by name, in `error.json`."""

ELSEWHERE = "Free space there, change its permissions, or name another folder."
"""What to do when a path cannot be written."""

REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR}


def refusal(error: OSError) -> str | None:
    """One line for a path that cannot be used (permissions, disk space, a file where a folder should be), else None."""
    if error.errno not in REFUSALS:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}. {ELSEWHERE}"
