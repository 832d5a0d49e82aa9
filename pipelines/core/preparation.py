"""Owns the contract of a preparation: faster forms of an engine's parts that are made while it runs.

Independent of what is prepared and how.
"""

from __future__ import annotations

from typing import Protocol


class Preparation(Protocol):
    """Makes compiled parts beside a running engine, which calls `swap` between ticks."""

    @property
    def state(self) -> str:
        """What runs now, and what is under way: a clause for the user. "": nothing to say."""
        ...

    def swap(self) -> bool:
        """Put into use what has become ready. True: what the engine calls has changed, so nothing captured is valid.

        Cheap; called before every tick.
        """
        ...

    def prefer(self, name: str, batch: int) -> None:
        """Ask for a form of a part at a size of its batch that ticks have had for a while; until then it is padded.

        Cheap for sizes that were asked for before.
        """
        ...

    def weights_changed(self, lora_scale: float) -> None:
        """Stop using what contains the model's weights: they have just changed, to this scale of the LoRAs."""
        ...

    def wait(self, timeout_s: float) -> bool:
        """Wait until nothing is under way. False: the time ran out."""
        ...

    def close(self) -> None:
        """Stop what is under way. What has been stored stays."""
        ...


class NoPreparation:
    """Nothing is prepared: the parts run as they are."""

    state = ""

    def swap(self) -> bool:
        """Return False."""
        return False

    def prefer(self, name: str, batch: int) -> None:
        """Do nothing."""

    def weights_changed(self, lora_scale: float) -> None:
        """Do nothing."""

    def wait(self, timeout_s: float) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Do nothing."""
