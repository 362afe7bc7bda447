"""A bundle in, arrays out. Nothing here imports runpod, torch or transformers."""
