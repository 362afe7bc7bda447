"""Sound: bytes to samples, samples to what a model reads, and what a CTC model answers to text."""
