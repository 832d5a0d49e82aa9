"""Open Sound Control input: /zoetrope/CONTROL VALUE for every control, and mapped addresses.

Optional (python-osc), off by default, bound to loopback by default: OSC has no authentication. Owns a UDP socket and a
thread.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from app.outputs.output import OutputReading
from pipelines.core.control_table import CONTROLS
from pipelines.core.errors import InputError

from .controller import Apply, Controller
from .mapping import ControlMapping

PREFIX = "/zoetrope/"


@dataclass(frozen=True, slots=True, kw_only=True)
class OscOptions:
    """host: an IP address. port: UDP; 0: any free one. allow_remote: for anyone who reaches the port."""

    host: str = "127.0.0.1"
    port: int = 9000
    allow_remote: bool = False
    mappings: Sequence[ControlMapping] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InputError(f"OSC port {self.port} is out of range.", "Give 0 to 65535.")
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError as error:
            raise InputError(f"OSC host {self.host!r} is not an IP address.", "Give 127.0.0.1.") from error
        if not address.is_loopback and not self.allow_remote:
            raise InputError(
                f"OSC on {self.host} can be reached by others, and OSC has no authentication.",
                "Use 127.0.0.1, or allow it explicitly (allow_remote) on a network that you trust.",
            )


class OscInput:
    """A running OSC server. Raises InputError without python-osc, or if the port is in use."""

    def __init__(self, options: OscOptions, apply: Apply) -> None:
        try:
            from pythonosc.dispatcher import Dispatcher
            from pythonosc.osc_server import BlockingOSCUDPServer
        except ImportError as error:
            raise InputError("OSC needs the package python-osc.", "pip install 'zoetrope[osc]'") from error
        dispatcher = Dispatcher()
        dispatcher.set_default_handler(self._on_message)
        try:
            self._server = BlockingOSCUDPServer((options.host, options.port), dispatcher)
        except OSError as error:
            raise InputError(
                f"OSC cannot listen on {options.host}:{options.port}: {error.strerror}.", "Give another port."
            ) from error
        self.host, self.port = str(self._server.server_address[0]), int(self._server.server_address[1])
        self._unknown = 0
        self._stopped = False
        self._controller = Controller(apply, options.mappings, name="osc-controls")
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="osc", daemon=True)
        self._thread.start()

    def read(self) -> OutputReading:
        text = f"OSC on {self.host}:{self.port}, {PREFIX}CONTROL VALUE"
        return self._controller.reading("osc", text, unknown=self._unknown)

    def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._controller.stop()

    def _on_message(self, address: str, *values: object) -> None:
        value: object = values[0] if len(values) == 1 else list(values)
        if address.startswith(PREFIX) and (name := address.removeprefix(PREFIX)) in CONTROLS:
            self._controller.set(name, value)
        elif not self._controller.move(address, value):
            self._unknown += 1
