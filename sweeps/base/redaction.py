"""Hide the passwords of URLs in text that is shown, stored or shared."""

import re
from typing import Any

HIDDEN = "***"
SECRET_PARAMETERS = (
    *("X-Amz-Signature", "X-Amz-Security-Token", "X-Amz-Credential", "X-Goog-Signature", "X-Goog-Credential"),
    *("AWSAccessKeyId", "GoogleAccessId", "Key-Pair-Id", "Policy", "Signature", "sig"),
    *("token", "access_token", "auth_token", "private_token", "id_token", "sas_token", "jwt", "auth", "authorization"),
    *("key", "api_key", "apikey", "access_key", "secret", "client_secret", "password", "passwd", "pwd", "credential"),
)
"""The parameters of a query that let whoever knows them read a file, in any mix of capital and small letters."""
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([^\s/?#:@]*)(:[^\s/?#]*)?@")
_PARAMETER = re.compile(rf"([?&;](?:{'|'.join(map(re.escape, SECRET_PARAMETERS))})=)[^\s&;#'\"<>()]+", re.IGNORECASE)


def redacted(text: str) -> str:
    """Return a text with the secrets of its URLs as ***: passwords, user names without one of http, and signed parameters.

    `https://user:***@host/a.jsonl?token=***`. It finds URLs anywhere in the text, so it suits the messages of libraries too.
    """
    if "://" in text:
        text = _USER.sub(_hide_user, text)
    return _PARAMETER.sub(rf"\1{HIDDEN}", text) if "=" in text else text


def redacted_values(value: Any) -> Any:
    """A plain value with every text in it redacted, also those in its lists and mappings."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, list | tuple):
        return [redacted_values(one) for one in value]
    return {name: redacted_values(one) for name, one in value.items()} if isinstance(value, dict) else value


def _hide_user(found: re.Match[str]) -> str:
    kind, user, password = found.groups()
    if password is None:  # for http, a token; elsewhere a name, or a revision, as in hf://gpt2@main
        return f"{kind}{HIDDEN if kind.lower().startswith('http') else user}@"
    return f"{kind}{user}:{HIDDEN}@"
