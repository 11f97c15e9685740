from pathlib import Path

from retain.launchers.stage.training.micro_batch import kept_bytes, largest_that_fits, micro_batch_for
from tests.lightning_modules.tiny_models import small_model

KIND = {"device": "a GPU", "length": 1024}


class Memory:
    """A device with room for so many sequences, that remembers what it was asked."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.asked: list[int] = []

    def fits(self, size: int) -> bool:
        self.asked.append(size)
        return size <= self.room


def test_the_share_is_halved_until_it_fits_and_one_sequence_is_always_tried() -> None:
    assert largest_that_fits(64, Memory(100).fits) == (64, None)
    assert largest_that_fits(100, Memory(30).fits) == (25, 50)
    assert largest_that_fits(64, Memory(0).fits) == (1, 2)


def test_what_fits_is_found_once_for_a_kind_of_stage_and_asked_again_only_for_larger_shares(tmp_path: Path) -> None:
    memory = Memory(30)
    assert micro_batch_for(tmp_path, KIND, 16, memory.fits) == 16
    assert micro_batch_for(tmp_path, KIND, 8, memory.fits) == 8
    assert memory.asked == [16]
    assert micro_batch_for(tmp_path, KIND, 128, memory.fits) == 16
    assert memory.asked == [16, 128, 64, 32, 16]
    assert micro_batch_for(tmp_path, KIND, 256, memory.fits) == 16
    assert memory.asked == [16, 128, 64, 32, 16]
    assert micro_batch_for(tmp_path, KIND | {"length": 512}, 256, Memory(300).fits) == 256


def test_what_fits_beside_other_processes_is_not_kept_for_later_runs(tmp_path: Path) -> None:
    assert micro_batch_for(tmp_path, KIND, 16, Memory(4).fits, keep=False) == 4
    assert micro_batch_for(tmp_path, KIND, 16, Memory(30).fits) == 16


def test_what_is_known_to_fit_stays_known_and_a_share_is_cut_into_equal_parts(tmp_path: Path) -> None:
    memory = Memory(11)
    assert micro_batch_for(tmp_path, KIND, 8, memory.fits) == 8
    assert micro_batch_for(tmp_path, KIND, 12, memory.fits) == 6
    assert memory.asked == [8, 12, 6]
    assert micro_batch_for(tmp_path, KIND, 8, memory.fits) == 8
    assert micro_batch_for(tmp_path, KIND, 100, memory.fits) == 8
    assert micro_batch_for(tmp_path, KIND, 10, memory.fits) == 5


def test_room_is_kept_for_moments_for_anchors_and_on_several_gpus_for_the_gradients_that_travel() -> None:
    model = small_model()
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert kept_bytes(model, {}) == 8 * weights
    assert kept_bytes(model, {}, world=2) == 12 * weights
    assert kept_bytes(model, {"anchor": {"l2sp": 0.1}}) == 12 * weights
    assert kept_bytes(model, {"anchor": {"ewc": 0.1}}, world=8) == 20 * weights
