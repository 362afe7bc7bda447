"""The worker's two processes: how they begin, talk, and end."""
