"""Owns the errors of plans, each with a remedy. Independent of all other modules."""

from __future__ import annotations


class PlanError(Exception):
    """A plan cannot be exported, built, stored, loaded or run. message: what is wrong. remedy: what to do about it."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".rstrip()


class PlanSpaceError(PlanError):
    """The disk is full, or a quota or a limit on the size of files is reached; nothing of the plan was kept."""


class PlanBusyError(PlanError):
    """Another process is building the same plan, and the caller did not want to wait."""
