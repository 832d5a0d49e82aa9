"""The errors that reach a user. Each says what was wrong and what to do about it.

ZoetropeError
├── InputError          a file, picture, prompt or option given by the user cannot be used
│   ├── ControlError    a control's value is out of range or unknown
│   └── TooLargeError   a body, an upload, a picture or a field is larger than allowed
├── ModelError          a model cannot be loaded or run
│   ├── ModelNotFoundError   no such bundled name, folder or hub id
│   ├── HubUnreachableError  the hub cannot be reached and the model is not in the cache
│   ├── ModelLayoutError     a folder or file is not what a loader expects
│   ├── UnsafeWeightsError   only pickled weights exist and the user did not insist
│   ├── OutOfMemoryError     too little memory; says what would fit
│   └── StreamError          one stream failed in a tick that it shared with others
├── OutputError         a result cannot be written
└── WorkerError         the worker process died or does not answer
"""

from __future__ import annotations


class ZoetropeError(Exception):
    """message says what was wrong, remedy what to do; both are shown to the user."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".rstrip()


class InputError(ZoetropeError):
    """Something the user gave cannot be used; nothing was changed."""


class ControlError(InputError):
    """A control's value is out of its range, of the wrong type, or the control is unknown."""


class TooLargeError(InputError):
    """A body, an upload or a field is larger than allowed."""


class ModelError(ZoetropeError):
    """A model cannot be loaded or run."""


class ModelNotFoundError(ModelError):
    """No bundled model, local folder or hub repository of that name."""


class HubUnreachableError(ModelError):
    """The model hub cannot be reached and the model is not cached."""


class ModelLayoutError(ModelError):
    """A folder or file does not have the layout that the loader expects."""


class UnsafeWeightsError(ModelError):
    """Weights exist only as pickles, which can run code when read."""


class OutOfMemoryError(ModelError):
    """The device has too little memory for what was asked."""


class StreamError(ModelError):
    """One stream's own part of a tick failed; without that stream the tick can be run again.

    stream: the handle that `Engine.open` gave.
    """

    def __init__(self, message: str, remedy: str = "", *, stream: object) -> None:
        super().__init__(message, remedy)
        self.stream = stream


class OutputError(ZoetropeError):
    """A result cannot be written; what was written so far stays playable."""


class WorkerError(ZoetropeError):
    """The worker process ended or does not answer."""
