"""Which parts of URLs are hidden wherever text is shown."""

import pytest

from retain.sweeps.base.errors import StageFailedError, StudyError
from retain.sweeps.base.redaction import redacted, redacted_values
from retain.sweeps.base.units import shortened
from retain.sweeps.schema.section import shown_value


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:secret@host/a.jsonl", "https://user:***@host/a.jsonl"),
        ("https://user:se@cr:et@host:8443/a", "https://user:***@host:8443/a"),
        ("https://secret@host/a", "https://***@host/a"),
        ("sftp://user:secret@host/a and s3://u:secret@b/c", "sftp://user:***@host/a and s3://u:***@b/c"),
        ("(URL('https://h/a?token=secret&page=1'), x)", "(URL('https://h/a?token=***&page=1'), x)"),
        ("s3://b/a?x=1&X-Amz-Signature=secret#f", "s3://b/a?x=1&X-Amz-Signature=***#f"),
        ("/a?sv=2&SIG=secret%2B status 403", "/a?sv=2&SIG=*** status 403"),
        (
            "https://h/a?token=secret, line 3: x, https://h/b?sig=se.cret.",
            "https://h/a?token=***, line 3: x, https://h/b?sig=***.",
        ),
        (
            "https://h/a?access-token=secret&X-Api-Key=secret&APIKey=secret",
            "https://h/a?access-token=***&X-Api-Key=***&APIKey=***",
        ),
        (r'{"url": "https://h/a?token=secret\nhttps://h"}', r'{"url": "https://h/a?token=***\nhttps://h"}'),
        (
            "https://u:sec#ret@h/a https://u:sec/ret@h/a@b https://u:sec?ret@h/a",
            "https://u:***@h/a https://u:***@h/a@b https://u:***@h/a",
        ),
    ],
)
def test_secrets_of_urls_are_hidden_anywhere_in_a_text(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8443/a@b.jsonl?page=1&tokens=3",
        "hf://datasets/owner/name@main/*.parquet",
        "hf://gpt2@main/a.json",
        '["https://host:8443","x@y.org"]',
        "https://host:8443?page=a@b",
        "sftp://user@host/a",
        "http://a.org: write to x@y.org",
        "posttrain.tokens=1M key=7",
    ],
)
def test_text_without_secrets_stays(text: str) -> None:
    assert redacted(text) == text


def test_errors_and_shortened_values_are_free_of_secrets() -> None:
    url = f"https://user:{'secret' * 30}@host/a"
    assert str(StudyError(f"files: {url}")) == "files: https://user:***@host/a"
    assert str(StageFailedError(url)) == "https://user:***@host/a"
    assert "secret" not in shortened(url) + shown_value(url) + shown_value([url])
    assert redacted_values({"files": [[url, 1, None]]}) == {"files": [["https://user:***@host/a", 1, None]]}
