"""What evaluations and training runs have measured besides the losses on whole corpora."""
