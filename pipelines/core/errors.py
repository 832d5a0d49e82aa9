"""Owns the errors that reach a user, each saying what is wrong and how to fix it. Independent of all other modules.

ZoetropeError
├── InputError          a file, picture, prompt or option given by the user cannot be used
│   ├── ControlError    a control's value is out of range or unknown
│   └── TooLargeError   a body, an upload, a picture or a field is larger than allowed
├── ModelError          a model cannot be loaded or run
│   ├── ModelNotFoundError   no such bundled name, folder or hub id
│   ├── HubUnreachableError  the hub cannot be reached and the model is not in the cache
│   ├── ModelLayoutError     a folder or file is not what a loader expects
│   ├── UnsafeWeightsError   only pickled weights exist and the user did not allow them
│   ├── OutOfMemoryError     the device has too little memory; says what would fit
│   └── StreamError          one stream failed in a tick that it shared with others
├── OutputError         a result cannot be written
└── WorkerError         the worker process died or does not answer
"""

from __future__ import annotations


class ZoetropeError(Exception):
    """message: what is wrong. remedy: what to do about it. Both are shown to the user."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".rstrip()


class InputError(ZoetropeError):
    """The user's input cannot be used; nothing was changed."""


class ControlError(InputError):
    """The control is unknown, or its value is out of range or of the wrong type."""


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
    """The device has too little memory for what was requested."""


class StreamError(ModelError):
    """One stream's own part of a tick failed; once that stream is closed, the tick can be run again.

    stream: the handle that `Engine.open` returned.
    """

    def __init__(self, message: str, remedy: str = "", *, stream: object) -> None:
        super().__init__(message, remedy)
        self.stream = stream


class OutputError(ZoetropeError):
    """A result cannot be written; what was written so far stays playable."""


class WorkerError(ZoetropeError):
    """The worker process ended or does not answer."""
