"""Scripts of the project: installing, locking, renewing what is written down."""
