"""A measurement card: the machine, what was run and how it was counted, and the figures. One type for every figure of
`zoetrope bench` and `bench.compare`; as JSON and as a short text. Independent of how the figures were obtained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from .figures import Figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where it ran. device: the GPU's or the processor's name. memory_gib: of the GPU or the machine. cpu_features: the
    instructions that kernels use. cores: those that this process may use. driver: of the GPU; "" on a CPU. versions:
    of the libraries that are installed, by name.
    """

    device: str
    memory_gib: float
    cpu: str
    cpu_features: tuple[str, ...]
    cores: int
    system: str
    driver: str
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What was run.

    subject: "zoetrope" or a peer with its version. model, weights: name, and "bundled", "random" or "the model's own".
    size_px: (width, height). task: what it does with what input. steps: denoising steps per frame or chunk. streams: at
    once. precision: of the denoiser. backend, why: how the networks are run, and why that was chosen. threads: CPU
    threads of the tensor library. counted: from where to where, and which frames. gap_of: what the times between
    arrivals are between ("frames", "chunks of 12 frames"). latency: what latency is, or why there is none. load_s,
    first_frame_s, ready_s: from the start of the process to a loaded model, to the first frame, and to the form that
    was measured, where compiled parts replace plain ones later. warm_up_frames, warm_up_s: excluded, compiling and
    capturing included. memory: what peak memory counts. energy: what joules count, or why they were not measured.
    notes: anything else a reader must know.
    """

    subject: str
    model: str
    weights: str
    size_px: tuple[int, int]
    task: str
    steps: int
    streams: int = 1
    precision: str
    backend: str
    why: str
    threads: int
    counted: str
    gap_of: str
    latency: str
    load_s: float
    first_frame_s: float
    ready_s: float
    warm_up_frames: int
    warm_up_s: float
    memory: str
    energy: str
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One measurement: machine, setup, figures. date: of the measurement, ISO 8601. command: that repeats it."""

    date: str
    command: str
    machine: Machine
    setup: Setup
    figures: Figures

    def as_json(self) -> dict[str, object]:
        """Return plain values for JSON: the fields by name, nested as here."""
        return asdict(self)

    def as_text(self) -> str:
        """Return the card for a terminal, a line for each fact; what was not measured says why."""
        return "\n".join(f"{name:<14}{value}".rstrip() for name, value in _rows(self))


def _rows(card: Card) -> list[tuple[str, str]]:
    setup, figures, machine = card.setup, card.figures, card.machine
    width, height = setup.size_px
    streams = f", {setup.streams} streams" if setup.streams > 1 else ""
    return [
        ("subject", f"{setup.subject}: {setup.model} ({setup.weights} weights)"),
        ("task", f"{setup.task}, {width}x{height}, {counted(setup.steps, 'step')}{streams}, {setup.precision}"),
        ("backend", f"{setup.backend} ({setup.why})"),
        ("machine", _machine_text(machine, setup.threads)),
        ("versions", ", ".join(f"{name} {version}" for name, version in machine.versions.items())),
        ("counted", setup.counted),
        ("warm-up", f"{setup.warm_up_frames} frames, {setup.warm_up_s:.1f} s, excluded"),
        ("", ""),
        ("speed", f"{figures.fps:.1f} frames a second ({figures.frames} frames in {figures.seconds:.1f} s)"),
        ("evenness", _gap_text(figures, setup.gap_of)),
        ("latency", _latency_text(figures, setup.latency)),
        ("first frame", _first_text(setup)),
        ("memory", f"{figures.peak_memory_mib:.0f} MiB: {setup.memory}"),
        ("energy", _energy_text(figures, setup.energy)),
        *(("note", note) for note in setup.notes),
        ("date", f"{card.date}, {card.command}"),
    ]


def counted(number: int, noun: str) -> str:
    """Return "1 step", "2 steps"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _machine_text(machine: Machine, threads: int) -> str:
    parts = [f"{machine.device} ({machine.memory_gib:.0f} GiB)"]
    if machine.driver:
        parts += [f"driver {machine.driver}", machine.cpu]
    else:
        parts.append(" ".join(machine.cpu_features) or "no vector instructions that PyTorch reports")
    parts += [counted(machine.cores, "core"), counted(threads, "thread"), machine.system]
    return ", ".join(parts)


def _first_text(setup: Setup) -> str:
    ready = f"; in the measured form after {setup.ready_s:.1f} s" if setup.ready_s > setup.first_frame_s else ""
    return f"{setup.first_frame_s:.1f} s after the process started (loaded after {setup.load_s:.1f} s){ready}"


def _gap_text(figures: Figures, gap_of: str) -> str:
    p50, p95, p99 = figures.gap_ms_p50, figures.gap_ms_p95, figures.gap_ms_p99
    return f"{p50:.1f} ms between {gap_of} (p50), {p95:.1f} (p95), {p99:.1f} (p99); p99/p50 {p99 / p50:.2f}"


def _latency_text(figures: Figures, latency: str) -> str:
    if figures.latency_ms_p50 is None or figures.latency_ms_p95 is None:
        return f"not measured: {latency}"
    return f"{figures.latency_ms_p50:.1f} ms {latency} (p50), {figures.latency_ms_p95:.1f} (p95)"


def _energy_text(figures: Figures, energy: str) -> str:
    if figures.joules_per_frame is None:
        return f"not measured: {energy}"
    return f"{figures.joules_per_frame:.2f} J a frame: {energy}"
