"""Graphs of bytes for CPUs: how they are made, and how the fastest that answers well is found."""
