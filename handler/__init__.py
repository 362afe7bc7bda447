"""Boots a bundle and answers RunPod jobs with it. `python -m handler` starts it."""
