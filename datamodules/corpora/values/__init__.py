"""Which value of a field each held-out document of a corpus has, so that held-out losses are given by value."""
