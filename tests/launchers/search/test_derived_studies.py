"""The studies that a search writes: other verbs find its stages and its data by them."""

from pathlib import Path

from retain.launchers.planning.opened_study import open_study
from retain.launchers.search.derived_studies import write_confirmation, write_points
from retain.results.store.study_files import POINTS_STUDY
from tests.launchers.search.searches import block, searching
from tests.studies import tiny_study


def test_a_corpus_of_the_cases_that_were_not_chosen_still_trains_the_tokeniser(tmp_path: Path) -> None:
    pipelines = {"chemistry": {"finetune.corpus": "chemistry"}, "music": {"finetune.corpus": "music"}}
    study, space = tiny_study(tmp_path, cases={"pipeline": pipelines}), block(axes={"finetune.lr": [1e-4, 5e-4]})
    searched = searching(str(study), tmp_path / "runs", "pipeline=music", space).searched
    points = {"p0": {"finetune.lr": 1e-4}}
    write_points(searched, points)
    confirm = write_confirmation(searched, points, None)
    _, tree = searched.tree(points)
    derived = open_study(str(searched.folder / POINTS_STUDY), (), searched.store.root)
    assert not derived.tree.provisional
    assert derived.tree.stages.keys() == tree.stages.keys()
    assert open_study(str(confirm), (), searched.store.root).tree.corpora == tree.corpora
