"""The trees of several studies as one."""

from collections.abc import Sequence

from retain.sweeps.tree.data_facts import TaskFacts
from retain.sweeps.tree.tree import Stage, Tree, Trial


def merged(trees: Sequence[Tree]) -> Tree:
    """Several trees as one. A stage or trial that several trees share appears once, with the axes of the first tree."""
    if len(trees) == 1:
        return trees[0]
    stages: dict[str, Stage] = {}
    trials: dict[tuple[tuple[str, ...], float], Trial] = {}
    for tree in trees:
        for key, stage in tree.stages.items():
            stages.setdefault(key, stage)
        for trial in tree.trials:
            trials.setdefault((trial.path, trial.average), trial)
    names = "+".join(dict.fromkeys(tree.study for tree in trees))
    corpora = {place: fingerprint for tree in trees for place, fingerprint in tree.corpora.items()}
    models = {text: counts for tree in trees for text, counts in tree.models.items()}
    measured: dict[str, tuple[str, ...]] = {}
    for tree in trees:
        for name, own in tree.measured.items():
            measured[name] = tuple(dict.fromkeys((*measured.get(name, ()), *own)))
    tasks = {name: dict[str, TaskFacts]() for name in measured}
    for name, own_tasks in (item for tree in trees for item in tree.tasks.items()):
        tasks[name] |= own_tasks
    values = {place: own for tree in trees for place, own in tree.values.items()}
    provisional = any(tree.provisional for tree in trees)
    return Tree(names, stages, list(trials.values()), provisional, corpora, models, measured, tasks, values)
