"""What the overlap of corpora has to do with retention."""
