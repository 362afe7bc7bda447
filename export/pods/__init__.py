"""GPUs rented at RunPod, to build plans on."""
