"""Near copies of documents: dropped with `dedupe: near`, estimated without."""
