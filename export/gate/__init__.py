"""What the parity gate compares, and by which measures. parity.py, above, is the stage."""
