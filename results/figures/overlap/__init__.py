"""The figure of retention against the overlap of corpora."""
