"""Corpora: read documents, tokenise them, and pack them into sequences of one length."""
