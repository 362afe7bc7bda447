"""Every exception that this project raises on purpose, by whose fault it is.

WorkerError
├── InvalidInput         the caller's: the payload breaks a rule; the message says what is allowed
│   ├── AnswerTooLarge   it asks for more than RunPod takes as one answer, or than its rows may hold
│   └── BadHost          the host of a URL is unknown, not public, or not who it says
├── Overloaded           nobody's: the queue is full; the same job may be sent again
├── Unreachable          another server's: it did not answer as it should; the same job may be sent again
└── WorkerFault          ours
    ├── ConfigError      a setting is wrong; the message names the variable, its value and the fix
    ├── BundleError      the bundle is damaged, incomplete or of another version
    ├── MissingPackage   a task needs a Python package that is not installed
    └── EngineError      the engine could not be loaded or failed while running
        ├── OutOfMemory  the device, or its driver, has no room for it
        └── EngineLost   this process's engine cannot go on: whatever it runs next fails too, or is wrong
"""


def in_words(error: BaseException) -> str:
    """The type of `error` and what it says, which it may fail to do."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception as failure:
        return f"{type(error).__name__} (to say more failed with {type(failure).__name__})"


class WorkerError(Exception):
    """Base of all; `prefix` opens the sentence that a caller reads."""

    prefix = "worker fault"

    def sentence(self) -> str:
        """The error as a job's caller sees it."""
        return f"{self.prefix}: {self}"


class InvalidInput(WorkerError):
    """The caller's fault. Sending the same payload again fails again."""

    prefix = "invalid input"


class AnswerTooLarge(InvalidInput):
    """An answer, or what it is made of, would be of `size` bytes, or is by now. Fewer items at once may be answered.

    `most` is how many are allowed, where that is not what RunPod takes.
    """

    def __init__(self, sentence: str, size: int, most: int | None = None) -> None:
        super().__init__(sentence)
        self.size = size
        self.most = most


class BadHost(InvalidInput):
    """No URL of this host can be fetched. Whoever named it is the caller, unless a setting did."""


class Overloaded(WorkerError):
    """The worker has no room now. Sending the same payload again may succeed."""

    prefix = "overloaded, please retry"


class Unreachable(WorkerError):
    """A server that the job needs failed. Sending the same payload again may succeed."""

    prefix = "unreachable, please retry"


class WorkerFault(WorkerError):
    """Our fault."""


class ConfigError(WorkerFault):
    """A setting is wrong."""


class BundleError(WorkerFault):
    """The bundle cannot be used."""


class MissingPackage(WorkerFault):
    """A task cannot be imported."""


class EngineError(WorkerFault):
    """The engine failed."""


class OutOfMemory(EngineError):
    """There is no room on the device. A smaller ladder may fit."""


class EngineLost(EngineError):
    """The engine cannot go on in this process. Nothing may be run again; the worker is to be replaced."""
