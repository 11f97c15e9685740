"""What a user may rely on where a server of a corpus is busy or breaks off: the whole file, or one clear sentence."""

import bz2
import gzip
from pathlib import Path

import fsspec
import pytest
import zstandard

from retain.datamodules.corpora.reading import remote_streams
from retain.datamodules.corpora.reading.remote import remote_file
from retain.datamodules.corpora.reading.unreachable import unreachable
from retain.sweeps.base.errors import MissingResourceError, StudyError
from tests.datamodules.corpora.reading.odd_server import Odd, odd_server
from tests.datamodules.corpora.reading.test_odd_files import lines, parquet, read

TEXTS = [f"document {number} of a corpus" for number in range(20_000)]
BODY = lines(*TEXTS)
PACKED = {
    ".jsonl": BODY,
    ".jsonl.gz": gzip.compress(BODY, 1),
    ".jsonl.zst": zstandard.compress(BODY),
    ".jsonl.bz2": bz2.compress(BODY),
    ".parquet": parquet({"text": TEXTS}),
}
READ_BY_THEN_S = 0.5
"""Seconds in which half of a file is read."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WAITS_S", "FIRST_WAITS_S"):
        monkeypatch.setattr(remote_streams, name, (0.01, 0.01, 0.01))


def refusal(odd: Odd, folder: Path, name: str = "a.jsonl") -> str:
    """The sentence with which a corpus is refused, without its address."""
    with odd_server(odd) as address, pytest.raises(MissingResourceError) as refused:
        read(folder, files=f"{address}/{name}")
    said = str(refused.value)
    assert said.startswith(f"files: {address}/{name}")
    assert "\n" not in said
    return said.removeprefix(f"files: {address}/{name}")


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("suffix", PACKED)
def test_a_file_is_read_on_where_the_connection_broke(
    suffix: str, ranges: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = Odd(PACKED[suffix], ranges=ranges, breaks=1, pause_s=READ_BY_THEN_S)
    with odd_server(odd) as address:
        assert read(tmp_path, files=f"{address}/a{suffix}") == TEXTS
    assert odd.breaks == 0
    assert "the connection broke after" in capsys.readouterr().err
    assert any(asked.startswith("GET bytes=") for asked in odd.asked)


def test_a_connection_may_break_any_number_of_times_while_bytes_arrive(tmp_path: Path) -> None:
    odd = Odd(BODY, breaks=2 * len(remote_streams.WAITS_S), pause_s=READ_BY_THEN_S / 2)
    with odd_server(odd) as address:
        assert read(tmp_path, files=f"{address}/a.jsonl") == TEXTS


def test_a_file_of_which_a_server_knows_only_the_time_is_read_on_too(tmp_path: Path) -> None:
    odd = Odd(
        BODY, {"Last-Modified": "Mon, 30 Nov 2026 01:00:00 GMT", "ETag": 'W/"1"'}, breaks=1, pause_s=READ_BY_THEN_S
    )
    with odd_server(odd) as address:
        assert read(tmp_path, files=f"{address}/a.jsonl") == TEXTS
    assert any(asked.startswith("GET bytes=") for asked in odd.asked)


@pytest.mark.parametrize("suffix", PACKED)
def test_a_file_that_always_breaks_off_is_never_taken_for_a_whole_one(suffix: str, tmp_path: Path) -> None:
    said = refusal(Odd(PACKED[suffix], ranges=False, breaks=99), tmp_path, f"a{suffix}")
    assert "the connection broke after" in said
    assert said.endswith("repeatedly); try again later, or use a local copy")


def test_a_file_that_changes_while_the_connection_is_broken_is_refused(tmp_path: Path) -> None:
    said = refusal(Odd(BODY, breaks=1, pause_s=READ_BY_THEN_S, later={"ETag": '"2"'}), tmp_path)
    assert said == ": the file changed while it was read; try again once nothing writes to it"


def test_without_an_etag_or_a_time_a_broken_file_is_refused(tmp_path: Path) -> None:
    said = refusal(Odd(BODY, {}, breaks=1, pause_s=READ_BY_THEN_S), tmp_path)
    assert "the server gives no etag and no time" in said


def test_a_file_whose_end_cannot_be_told_from_a_broken_connection_is_refused(tmp_path: Path) -> None:
    said = refusal(Odd(lines("one", "two"), says_length=False, breaks=1), tmp_path)
    assert "(the server does not say where it ends, so a broken connection would look like the end)" in said


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(status: int, tmp_path: Path) -> None:
    with odd_server(Odd(BODY, statuses=[status, status])) as address:
        assert read(tmp_path, files=f"{address}/a.jsonl") == TEXTS


@pytest.mark.parametrize(
    ("status", "retry_after", "words"),
    [
        (
            403,
            "0",
            "(the server answers 403 Forbidden); check your credentials (in ~/.netrc) or the time limit of a sig",
        ),
        (429, "86400", "(the server answers 429 Too Many Requests, and asks to wait 86400 s); try again later"),
        (503, "0", "(the server answers 503 Service Unavailable); try again later, or use a local copy"),
    ],
)
def test_an_answer_that_stays_is_told_with_its_cure(status: int, retry_after: str, words: str, tmp_path: Path) -> None:
    assert words in refusal(Odd(BODY, statuses=[status] * 99, retry_after=retry_after), tmp_path)


def test_redirects_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    with odd_server(Odd(BODY, redirect="/moved/a.jsonl")) as address:
        assert read(tmp_path, files=f"{address}/a.jsonl") == TEXTS
    assert "(the server redirects in a loop); check the URL" in refusal(Odd(BODY, redirect="/a.jsonl"), tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_file_that_the_server_compresses_is_read_as_it_is(name: str, tmp_path: Path) -> None:
    plain = PACKED[".parquet"] if name == "a.parquet" else BODY
    odd = Odd(gzip.compress(plain, 1), {"ETag": '"1"', "Content-Encoding": "gzip"}, breaks=1)
    with odd_server(odd) as address:
        assert read(tmp_path, files=f"{address}/{name}") == TEXTS


def test_an_encoding_that_cannot_be_undone_is_refused(tmp_path: Path) -> None:
    said = refusal(Odd(BODY, {"Content-Encoding": "br"}), tmp_path)
    assert said == " cannot be read (the server sends it with Content-Encoding: br); use a local copy"


def test_a_web_page_to_log_in_is_never_taken_for_a_corpus(tmp_path: Path) -> None:
    page = Odd(b"<html>Log in</html>", {"Content-Type": "text/html; charset=utf-8"})
    assert "(the server sends a web page, for instance to log in, and not the file)" in refusal(page, tmp_path, "a.txt")


def test_a_damaged_file_at_a_url_is_told_from_a_broken_connection(tmp_path: Path) -> None:
    for body in (b"no gzip", gzip.compress(BODY)[:-20]):
        with odd_server(Odd(body)) as address, pytest.raises(StudyError, match=r"a\.jsonl\.gz: .* repair the file"):
            read(tmp_path, files=f"{address}/a.jsonl.gz")


def test_what_reads_a_public_bucket_is_told() -> None:
    assert "(for a public bucket, set FSSPEC_GS_TOKEN=anon)" in str(unreachable("gs://b/a", PermissionError("denied")))
    assert "(for a public bucket, set FSSPEC_S3_ANON=true)" in str(unreachable("s3://b/a", PermissionError("denied")))


def test_an_object_that_google_decompresses_on_the_way_is_refused_as_only_a_part_would_be_read() -> None:
    facts = {"name": "b/a.jsonl", "size": 10, "etag": "1", "contentEncoding": "gzip"}
    with pytest.raises(
        MissingResourceError, match="run `gcloud storage objects update --clear-content-encoding` on it"
    ):
        remote_file(fsspec.filesystem("memory"), "b/a.jsonl", facts)
