"""Errors that are about what the caller gave, not about a defect in the package."""


class InputError(ValueError):
    """What the caller gave can't be used.

    The message is one sentence that names the offending value and says what to do
    instead. The command line prints it on one line and exits with code 2.

    Attributes:
      raised_on_all_processes: whether every process of a distributed run raises it.
    """

    raised_on_all_processes = False


class DatasetUnavailable(InputError):
    """The dataset is neither on this machine nor to be had from where it is published."""


def one_line(error: BaseException, max_length: int = 200) -> str:
    """What an exception tells, in one line of at most so many characters."""
    told = getattr(error, "strerror", None) or str(error)
    return " ".join(told.split())[:max_length] or type(error).__name__
