"""RunPod's Hub looks for a handler.py. The worker is the package handler/; this starts it as `python -m` does."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # instead of this folder, where `handler` is this file
    runpy.run_module("handler", run_name="__main__", alter_sys=True)
