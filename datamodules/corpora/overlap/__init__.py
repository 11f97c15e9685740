"""How similar two corpora are, measured on their packed tokens before anything is trained."""
