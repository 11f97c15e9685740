"""The energy of an attempt, where its devices count it: NVIDIA's GPUs by NVML, and Intel's and AMD's processors by RAPL.

A GPU is the attempt's alone, so all that it uses counts. A processor also works for others, so its energy counts by the part of
its busy time that this process used. Without a counter that may be read, energy is unknown.
"""

import contextlib
import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path

RAPL = Path("/sys/class/powercap")
STAT = Path("/proc/stat")
IDLE = (3, 4)
"""The fields of the line `cpu` of /proc/stat that are not work: idle, and waiting for a disk."""
GUEST = 8
"""The fields from this one on repeat time that earlier fields already count."""


class EnergyMeter:
    """Measures joules by counters, from when it is made. Call `joules` often enough that no counter wraps twice between calls.

    read: the present value of each counter in joules, raising OSError or ValueError once one cannot be read. wraps: the value
    at which each starts again at 0. share: the part that counts of what was used since it was called last.
    """

    def __init__(
        self, read: Callable[[], list[float]], wraps: Sequence[float], share: Callable[[], float] = lambda: 1.0
    ) -> None:
        self.read, self.wraps, self.share = read, wraps, share
        self.used: float | None = 0.0
        self.last = read()
        share()

    def joules(self) -> float | None:
        """The joules so far; None once a counter could not be read, as the rest would be too little."""
        if self.used is None:
            return None
        try:
            now = self.read()
            used = sum((new - old) % wrap for new, old, wrap in zip(now, self.last, self.wraps, strict=True))
            self.used += used * self.share()
            self.last = now
        except (OSError, ValueError):
            self.used = None
        return self.used


def gpu_meter(uuids: Sequence[str]) -> EnergyMeter | None:
    """A meter of these GPUs, by the UUIDs of torch; None if NVML is missing, or one of them does not count its energy."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        _check(nvml.nvmlInit_v2())
        handles = []
        for uuid in uuids:
            handle = ctypes.c_void_p()
            name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
            _check(nvml.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle)))
            handles.append(handle)

        def read() -> list[float]:
            values = []
            for handle in handles:
                millijoules = ctypes.c_ulonglong()
                _check(nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)))
                values.append(millijoules.value / 1000)
            return values

        return EnergyMeter(read, [2**64 / 1000] * len(handles)) if handles else None
    return None


def cpu_meter(rapl: Path = RAPL, stat: Path = STAT) -> EnergyMeter | None:
    """A meter of this process's part of the energy of all processors; None if their counters may not be read."""
    with contextlib.suppress(OSError, ValueError):
        # intel-rapl:0 is a processor, intel-rapl:0:1 a part of it; AMD's have the same names.
        packages = [place for place in sorted(rapl.glob("intel-rapl:*")) if place.name.count(":") == 1]
        packages = [place for place in packages if (place / "name").read_text().startswith("package")]
        wraps = [int((place / "max_energy_range_uj").read_text()) / 1e6 for place in packages]

        def read() -> list[float]:
            return [int((place / "energy_uj").read_text()) / 1e6 for place in packages]

        if packages:
            return EnergyMeter(read, wraps, _share_of_processors(stat))
    return None


def _share_of_processors(stat: Path) -> Callable[[], float]:
    """The part of the machine's busy time that this process used between two calls."""
    own, busy = 0.0, 0.0

    def share() -> float:
        nonlocal own, busy
        times = os.times()
        was, own = own, times.user + times.system
        before, busy = busy, _busy_seconds(stat)
        return min(1.0, max(0.0, own - was) / max(busy - before, 1e-9))

    return share


def _busy_seconds(stat: Path) -> float:
    """Seconds that the machine's cores have worked since it was started."""
    fields = [int(field) for field in stat.read_text().split("\n", 1)[0].split()[1:]][:GUEST]
    return sum(ticks for number, ticks in enumerate(fields) if number not in IDLE) / os.sysconf("SC_CLK_TCK")


def _check(code: int) -> None:
    if code:
        raise ValueError(f"NVML answers {code}")
