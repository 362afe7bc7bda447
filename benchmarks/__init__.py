"""Measurements and the RunPod endpoint on localhost that they, and the tests, run against."""
