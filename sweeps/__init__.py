"""What to run: the study schema, the study files, the tree of stages, its keys, its cost. No torch at import time."""
