"""Site profiles, and how the options of a site, a study and one kind of stage combine."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.execution import Execution
from retain.sweeps.schema.read import check_study
from retain.sweeps.schema.sites import Site, choose_site, read_sites, sites_file
from retain.sweeps.tree.recipes.devices import device_mismatch
from tests.studies import tiny_fields

NORTH = {
    "match": ["north*", "login[0-9]"],
    "partition": "gpu,gpu-preempt",
    "account": "me",
    "gres": "gpu:a100:{gpus}",
    "setup": ["module load python"],
    "environment": {"NCCL_SOCKET_IFNAME": "ib0", "LEVEL": 2},
    "extra": {"hint": "nomultithread"},
    "minutes": 1200,
}


@pytest.fixture(autouse=True)
def sites_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that RETAIN_SITES names in these tests."""
    path = tmp_path / "sites.yaml"
    monkeypatch.setenv("RETAIN_SITES", str(path))
    return path


def execution(**fields: Any) -> Execution:
    return check_study(tiny_fields(execution=fields), Path("tiny.yaml")).study.execution


def test_without_a_sites_file_there_are_no_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RETAIN_SITES", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert sites_file() == tmp_path / "retain" / "sites.yaml"
    assert read_sites() == {}


def test_the_file_that_retain_sites_names_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETAIN_SITES", str(tmp_path / "mine.yaml"))
    with pytest.raises(StudyError, match=r"mine\.yaml: file not found; correct RETAIN_SITES"):
        read_sites()
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"north": NORTH}))
    assert read_sites()["north"].account == "me"


@pytest.mark.parametrize("names", [["northern"], ["elsewhere", "login7"]])
def test_a_profile_is_chosen_by_the_names_of_the_machine(names: list[str], sites_yaml: Path) -> None:
    sites_yaml.write_text(yaml.safe_dump({"north": NORTH, "south": {"match": "south"}, "named": {}}))
    known = read_sites()
    chosen = choose_site(known, None, names)
    assert chosen is not None
    assert chosen[0] == "north"


def test_no_profile_is_chosen_if_none_matches_unless_it_is_named(sites_yaml: Path) -> None:
    sites_yaml.write_text(yaml.safe_dump({"north": NORTH, "named": {"qos": "low"}}))
    known = read_sites()
    assert choose_site(known, None, ["login10", "xnorth"]) is None
    assert choose_site(known, "named", ["north1"]) == ("named", Site(qos="low"))


def test_two_matching_profiles_and_an_unknown_profile_are_errors(sites_yaml: Path) -> None:
    sites_yaml.write_text(yaml.safe_dump({"north": NORTH, "other": {"match": "*1"}}))
    known = read_sites()
    with pytest.raises(StudyError, match=r"north and other match north1; choose one with --site"):
        choose_site(known, None, ["north1"])
    with pytest.raises(StudyError, match=r"--site sud: unknown site in .*; the known sites are north, other"):
        choose_site(known, "sud", [])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("north: {partitoin: gpu}", "sites.yaml: north.partitoin: unknown field; did you mean partition?"),
        ("north: {nodes: 2}", "sites.yaml: north.nodes: unknown field; the known fields are partition, account"),
        ("north: {minutes: 0}", "sites.yaml: north.minutes: must be greater than 0 (got 0)"),
        (
            "north: {environment: {A-B: 1}}",
            "sites.yaml: north.environment.A-B: not a name of a variable; write letters, digits and underscores",
        ),
        ("north: gpu", "sites.yaml: expected a mapping from site names to fields; write `north: {partition: gpu}`"),
        ("north: {setup: [a\n", "sites.yaml: invalid YAML in line 2: a bracket or a comma is missing or too many"),
        ("north: {minutes: 012}", "sites.yaml: north.minutes: '012' is not a number; write 12, or 10 if it is octal"),
        ("north: {match: [1]}", "sites.yaml: north.match: expected a pattern or a list of patterns (got [1])"),
        (
            "north: {extra: {array: 1-3}}",
            "sites.yaml: north.extra: Retain sets the option array of every job; remove it",
        ),
        ("- north", "sites.yaml: expected a mapping from site names to fields"),
        ("north: {qos: a, qos: b}", "sites.yaml: invalid YAML in line 1: qos appears twice; remove one of them"),
    ],
)
def test_an_invalid_profile_is_one_sentence_with_file_field_and_cure(
    content: str, sentence: str, sites_yaml: Path
) -> None:
    sites_yaml.write_text(content)
    with pytest.raises(StudyError) as caught:
        read_sites()
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_study_takes_precedence_over_the_site_and_a_kind_of_stage_over_the_study() -> None:
    study = execution(
        devices=2,
        slurm={"qos": "normal", "setup": ["ulimit -n 4096"], "environment": {"LEVEL": 3}, "account": None},
        stages={
            "pretrain": {"devices": 8, "micro_batch": 1, "slurm": {"nodes": 2, "partition": "big", "setup": ["date"]}}
        },
    )
    site = Site(**NORTH)
    pretrain, finetune = study.of_stage("pretrain", site), study.of_stage("finetune", site)
    assert (pretrain.devices, pretrain.micro_batch, pretrain.slurm.nodes) == (8, 1, 2)
    assert (finetune.devices, finetune.micro_batch, finetune.slurm.nodes) == (2, None, 1)
    assert (pretrain.slurm.partition, finetune.slurm.partition) == ("big", "gpu,gpu-preempt")
    assert pretrain.slurm.qos == finetune.slurm.qos == "normal"
    assert finetune.slurm.account is None
    assert finetune.slurm.environment == {"NCCL_SOCKET_IFNAME": "ib0", "LEVEL": 3}
    assert pretrain.slurm.setup == ["module load python", "ulimit -n 4096", "date"]
    assert finetune.slurm.minutes is None, "minutes of a site are a limit, not a walltime"


def test_fields_of_the_study_apply_to_every_kind_of_stage() -> None:
    study = execution(devices=4, save_minutes=3, slurm={"memory_gb": 64})
    for kind in ("pretrain", "posttrain", "finetune"):
        stage = study.of_stage(kind)
        assert (stage.devices, stage.save_minutes, stage.slurm.memory_gb) == (4, 3, 64)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"slurm": {"nodes": 3}, "devices": 4}, "execution.slurm.nodes: 3 nodes cannot share 4 devices evenly"),
        ({"stages": {"pretrain": {"slurm": {"nodes": 2}}}}, "2 nodes cannot share 1 devices of pretrain evenly"),
        ({"stages": {"pretrain": {"devcies": 2}}}, "execution.stages.pretrain.devcies: unknown field; did you mean"),
        (
            {"stages": {"pretune": {}}},
            "execution.stages.pretune: unknown stage; the stages are pretrain, posttrain, finetune",
        ),
        ({"stages": {"finetune": {"parallel": 2}}}, "execution.stages.finetune.parallel: unknown field"),
    ],
)
def test_invalid_resources_are_an_error_at_plan_time(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StudyError) as caught:
        execution(**fields)
    assert sentence in str(caught.value)


def test_a_batch_that_cannot_be_split_over_the_devices_of_one_kind_of_stage_is_named() -> None:
    file = check_study(tiny_fields(execution={"stages": {"posttrain": {"devices": 3}}}), Path("tiny.yaml"))
    assert device_mismatch(file) == (
        "posttrain.batch: 8 sequences cannot be split evenly over execution.stages.posttrain.devices: 3; choose a "
        "batch that they divide, or other devices"
    )


def test_jobs_for_data_take_the_options_for_data_over_all_others_and_no_gpus() -> None:
    site = Site.model_validate(
        {
            "partition": "gpu",
            "account": "me",
            "gres": "gpu:a100:{gpus}",
            "setup": ["module load site"],
            "data": {"partition": "cpu", "cpus": 8, "minutes": 30},
        }
    )
    own = Execution.model_validate(
        {
            "devices": 4,
            "slurm": {"nodes": 2, "minutes": 600, "qos": "long", "setup": ["module load study"]},
            "data": {"slurm": {"cpus": 3}},
        }
    )
    found = own.of_data(site, site.data)
    assert (found.accelerator, found.devices, found.slurm.nodes, found.slurm.gres) == ("cpu", 1, 1, None)
    assert (found.slurm.partition, found.slurm.account, found.slurm.qos) == ("cpu", "me", "long")
    assert (found.slurm.cpus, found.slurm.minutes) == (3, 30)
    assert found.slurm.setup == ["module load site", "module load study"]
    assert own.of_data().slurm.minutes is None
