"""One file a stage: a plain function from records to a record."""
