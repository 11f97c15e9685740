"""The data of a stage: corpora (read, tokenise, pack) and order (which sequences a stage reads, and when)."""
