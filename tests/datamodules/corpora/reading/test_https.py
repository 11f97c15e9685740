"""Corpora of https servers, read by the command line with the authorities that a user trusts."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.datamodules.corpora.reading.odd_server import Odd, odd_server
from tests.retain import retain, retain_json
from tests.studies import tiny_study

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by openssl")
CERTIFICATES = {"localhost": ("localhost", "1"), "elsewhere": ("example.org", "1"), "expired": ("localhost", "-1")}
"""Host and days of each certificate."""
FILES = {"general": "general.txt", "music": "music.jsonl", "chemistry": "chemistry.jsonl"}
PROBLEMS = {
    "music": "Hostname mismatch, certificate is not valid for 'localhost'); correct the host in the URL",
    "chemistry": "certificate has expired); check this machine's clock",
}


def make_certificates(folder: Path) -> Path:
    """Write an authority of our own, and certificates by it; return its file.

    They have all extensions that newer versions of Python demand.
    """

    def openssl(command: str) -> None:
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)

    folder.mkdir()
    new = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    usage = "-addext keyUsage=critical,keyCertSign"
    openssl(f"req -x509 {new} {usage} -keyout authority.key -out authority.pem -days 1 -subj /CN=Authority")
    for name, (host, days) in CERTIFICATES.items():
        extensions = (f"subjectAltName=DNS:{host}", "subjectKeyIdentifier=hash", "authorityKeyIdentifier=keyid")
        (folder / "extensions").write_text("\n".join(extensions))
        openssl(f"req {new} -keyout {name}.key -out {name}.csr -subj /CN={host}")
        openssl(
            f"x509 -req -in {name}.csr -CA authority.pem -CAkey authority.key -CAcreateserial -out {name}.pem "
            f"-days {days} -extfile extensions"
        )
    return folder / "authority.pem"


@dataclass(frozen=True)
class Remote:
    """A study on local files, and the same with files of https servers."""

    local: Path
    good: Path
    bad: Path
    """Two of the servers have certificates that are not valid."""
    trusted: dict[str, str]
    """The environment variables that trust the authority."""
    servers: dict[str, Odd]


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    folder = tmp_path_factory.mktemp("https")
    authority, local = make_certificates(folder / "certificates"), tiny_study(folder)
    servers = {name: Odd((folder / file).read_bytes()) for name, file in FILES.items()}
    with ExitStack() as stack:

        def study(name: str, certificates: dict[str, str]) -> Path:
            fields = yaml.safe_load(local.read_text())
            for corpus, certificate in certificates.items():
                pem = authority.with_name(f"{certificate}.pem")
                address = stack.enter_context(odd_server(servers[corpus], pem))
                fields["corpora"][corpus]["files"] = f"{address}/{FILES[corpus]}"
            path = folder / f"{name}.yaml"
            path.write_text(yaml.safe_dump(fields))
            return path

        good = study("good", dict.fromkeys(FILES, "localhost"))
        bad = study("bad", {"general": "localhost", "music": "elsewhere", "chemistry": "expired"})
        yield Remote(local, good, bad, {"SSL_CERT_FILE": str(authority)}, servers)


def fingerprints(document: object) -> list[str]:
    """The fingerprints of the prepared corpora in what `retain data --json` prints."""
    return sorted(line.strip() for line in json.dumps(document, indent=0).splitlines() if '"fingerprint"' in line)


def test_data_prepared_over_https_is_that_of_local_files_also_if_connections_break(
    remote: Remote, tmp_path: Path
) -> None:
    for one in remote.servers.values():
        one.breaks, one.pause_s = 1, 0.2
    far = retain_json("data", remote.good, "--store", tmp_path / "far", more=remote.trusted)
    assert not any(one.breaks for one in remote.servers.values())
    near = retain_json("data", remote.local, "--store", tmp_path / "near")
    assert fingerprints(far) == fingerprints(near) != []


def test_a_certificate_that_is_not_valid_is_refused_in_one_sentence_with_its_cure(remote: Remote) -> None:
    checked = retain_json("data", remote.bad, "--check", code=3, more=remote.trusted)
    problems = {one["name"].removeprefix("corpora."): one["problem"] for one in checked["checks"] if one["problem"]}
    assert problems.keys() == PROBLEMS.keys()
    for name, words in PROBLEMS.items():
        assert f"(the server's certificate is not valid: {words}" in problems[name]


def test_an_authority_that_is_not_trusted_is_refused_and_the_variable_is_named_that_trusts_it(remote: Remote) -> None:
    done = retain("plan", remote.good, code=3)
    assert "set SSL_CERT_FILE to a PEM file with all authorities to trust" in done.stderr
    assert len(done.stderr.splitlines()) == 1
