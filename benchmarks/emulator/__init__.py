"""A RunPod queue endpoint on localhost, worker side and client side, that the real SDK and the real client talk to.

records.py what is remembered, jobs.py the state machine, exchange.py the waiting, worker_routes.py and client_routes.py
the protocol, faults.py what can go wrong, server.py the server, far.py
a distance to it, command.py the command line.
"""

from .command import add_arguments, main
from .far import FarEmulatorThread
from .faults import Fault, Faults
from .records import JobRecord, Post, Rejection, Status, WorkerRecord
from .server import Emulator
from .thread import EmulatorThread

__all__ = [
    "Emulator",
    "EmulatorThread",
    "FarEmulatorThread",
    "Fault",
    "Faults",
    "JobRecord",
    "Post",
    "Rejection",
    "Status",
    "WorkerRecord",
    "add_arguments",
    "main",
]
