"""Errors caused by the caller's input."""


class InputError(ValueError):
    """Raised when the input can't be used.

    The message is one sentence that names the offending value and says what to do instead. The
    command line prints it and exits with code 2.

    Attributes:
      raised_on_all_processes: Whether every process of a distributed run raises it.
    """

    raised_on_all_processes = False


class DatasetUnavailableError(InputError):
    """Raised when a dataset is not on this machine and can't be downloaded."""


def one_line(error: BaseException, max_length: int = 200) -> str:
    """Returns the message of an exception on one line, truncated.

    Example:
      >>> one_line(ValueError("two\\nlines"))
      'two lines'
    """
    message = getattr(error, "strerror", None) or str(error)
    return " ".join(message.split())[:max_length] or type(error).__name__
