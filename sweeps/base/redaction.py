"""Hide the passwords of URLs in text that is shown, stored or shared."""

import re
from typing import Any

HIDDEN = "***"
SECRET_PARAMETERS = (
    *("X-Amz-Signature", "X-Amz-Security-Token", "X-Amz-Credential", "X-Goog-Signature", "X-Goog-Credential"),
    *("AWSAccessKeyId", "GoogleAccessId", "Key-Pair-Id", "Policy", "Signature", "sig"),
    *("token", "access_token", "auth_token", "private_token", "id_token", "sas_token", "session_token"),
    *("key", "api_key", "x_api_key", "access_key", "secret", "client_secret", "password", "passwd", "pwd"),
    *("security_token", "credential", "jwt", "auth", "authorization"),
)
"""Query parameters that grant access to a file. Case does not matter, and _ may also be - or left out."""
_NAMES = "|".join(re.escape(name).replace("_", "[_-]?") for name in SECRET_PARAMETERS)
_USER = re.compile(
    r"""([A-Za-z][A-Za-z0-9+.-]{0,20}://)([^\s/?#:@"<>]*)"""
    # A password may have a character that belongs encoded; a number before it is a port, and the @ is one of the path.
    r"""(:[^\s/?#"<>]*|:(?!\d+[/?#])[^\s"<>@]{0,200})?@"""
)
_PARAMETER = re.compile(rf"""([?&;](?:{_NAMES})=)[^\s&;#'"<>()\\]*[^\s&;#'"<>()\\,:.\]]""", re.IGNORECASE)


def redacted(text: str) -> str:
    """Return a text with *** for the secrets of its URLs: passwords, tokens in place of an http user name, and signatures.

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
