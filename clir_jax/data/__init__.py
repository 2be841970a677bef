"""Data: records, sources, tokenisation and the batches of a task."""
