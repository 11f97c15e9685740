"""What to run: the schema of studies, the study files, and the tree of stages with its keys and cost. Imports no torch."""
