"""A load-balancing endpoint: the worker listens itself."""
