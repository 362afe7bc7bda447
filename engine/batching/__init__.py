"""From the rows of many jobs to batches on an engine, and back."""
