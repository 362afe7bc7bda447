"""RunPod's queue: its HTTP, and the SDK's protocol functions."""
