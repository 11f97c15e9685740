"""Documents and records out of files, URLs and installed packages."""
