"""What happens once, before the first job. boot.py, above, calls it."""
