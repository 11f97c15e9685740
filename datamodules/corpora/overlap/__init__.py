"""How near two corpora are, measured on their packed tokens before anything is trained."""
