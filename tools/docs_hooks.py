"""MkDocs runs these functions while it builds the docs site; see mkdocs.yml."""

import re
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

FROM_NETWORK = re.compile(r'<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]+"')


def on_post_page(output: str, page: Page, config: Any) -> str:
    """Check that a page loads nothing from the network, so that the site works offline. Raises PluginError."""
    if found := FROM_NETWORK.search(output):
        raise PluginError(f"{page.file.src_uri}: loads {found[0]}; use a file of docs/ instead")
    return output
