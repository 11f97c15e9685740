"""The energy of an attempt: what counters say, and that nothing is claimed where there is none."""

import time
from pathlib import Path

import pytest

from retain.launchers.stage.reporting.energy import EnergyMeter, cpu_meter, gpu_meter


def processor(folder: Path, number: int, microjoules: int, wrap: int = 1_000_000_000) -> Path:
    """A processor as the kernel shows it below /sys/class/powercap."""
    place = folder / f"intel-rapl:{number}"
    place.mkdir(parents=True, exist_ok=True)
    (place / "name").write_text(f"package-{number}\n")
    (place / "max_energy_range_uj").write_text(f"{wrap}\n")
    (place / "energy_uj").write_text(f"{microjoules}\n")
    return place


def test_the_energy_of_all_processors_counts_by_this_process_s_part_of_their_busy_time(tmp_path: Path) -> None:
    rapl, stat = tmp_path / "powercap", tmp_path / "stat"
    processor(rapl, 0, 5_000_000)
    processor(rapl, 1, 999_000_000)
    core = processor(rapl, 0, 5_000_000).with_name("intel-rapl:0:0")
    core.mkdir()
    (core / "name").write_text("core\n")
    stat.write_text("cpu  1000 0 1000 5000 0 0 0 0 700 0\ncpu0 ...\n")
    meter = cpu_meter(rapl, stat)
    assert meter is not None
    began = time.process_time()
    while time.process_time() < began + 0.2:
        pass
    stat.write_text("cpu  1030 0 1010 9000 0 0 0 0 800 0\ncpu0 ...\n")  # 0.4 s of work, of which this process did half
    processor(rapl, 0, 45_000_000)
    processor(rapl, 1, 9_000_000)  # has started again at 0
    assert meter.joules() == pytest.approx((40 + 10) * 0.5, rel=0.3)
    (rapl / "intel-rapl:1" / "energy_uj").unlink()
    assert meter.joules() is None, "half of the processors would be too little"


def test_without_a_counter_that_may_be_read_there_is_no_meter(tmp_path: Path) -> None:
    assert cpu_meter(tmp_path, tmp_path / "stat") is None
    place = processor(tmp_path, 0, 5)
    (place / "energy_uj").unlink()
    assert cpu_meter(tmp_path) is None
    assert gpu_meter([]) is None
    assert gpu_meter(["no such device"]) is None


def test_a_counter_that_wraps_goes_on_counting() -> None:
    values = iter([[90.0], [95.0], [4.0]])
    meter = EnergyMeter(lambda: next(values), [100.0])
    assert [meter.joules(), meter.joules()] == [5.0, 14.0]
