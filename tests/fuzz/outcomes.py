"""Outcomes of reading a mutant, and the guards of time and memory around it."""

from __future__ import annotations

import re
import signal
import traceback
from contextlib import contextmanager

from mpochain import MPOError
from mpochain.system.memory import limited_growth

# Seconds of processor time that one mutant may take. The limits on building a model are 5 s and more.
SECONDS = 20
# Mebibytes of address space that one mutant may take. Building a model may take 2.5 GiB with its threads.
LARGEST = 4000
# Mebibytes by which the process may grow over the whole run.
GROWTH = 1500
# Longest message of an error, in characters: a file cannot fill the terminal.
_LONGEST = 20_000
# Words of messages about a whole file instead of one of its fields.
_WHOLE = (
    "cannot be read",
    "cannot read",
    "is damaged",
    "is not a recipe",
    "is not a training state",
    "is larger than",
    "not UTF-8",
    "does not fit its model",
    "belongs to another model",
    "not a JSON object",
    "no model is named",
    "there is no such field",
    "Extra inputs are not permitted",
    "Field required",
    "expected",
)


class OutOfTimeError(BaseException):
    """A mutant took too much time; not an Exception, so that no reader handles it."""


class WrongContentError(AssertionError):
    """A reader accepted a mutant and returned something that the file does not hold."""


@contextmanager
def limited_time():
    """Stop what takes more processor time than a mutant may."""

    def stop(*_):
        raise OutOfTimeError

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def outcome_of(read, files, names):
    """Read a mutant, and return its outcome with details of those that are not allowed.

    Args:
        read: reads the mutant; returns "same" or, where invalid files count as empty by design, "ignored"; raises
            WrongContentError.
        files: names of which an error has to contain one.
        names: names of fields, of which an error about a field has to contain one.
    """
    try:
        with limited_time(), limited_growth(LARGEST << 20):
            return read(), ""
    except OutOfTimeError:
        return "out of time", traceback.format_exc(limit=-3)
    except WrongContentError as error:
        return "wrong content", str(error)
    except MPOError as error:
        return _judged(str(error), files, names)
    except Exception:
        return "another error", traceback.format_exc(limit=-4)


def _judged(message, files, names):
    if not any(str(file) in message for file in files):
        return "error without file", message
    if len(message) > _LONGEST:
        return "endless error", message[:200]
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", message):
        return "unescaped error", repr(message[:400])
    rest = message
    for file in files:
        rest = rest.replace(str(file), "")
    if not any(name and name in rest for name in names) and not any(text in rest for text in _WHOLE):
        return "error without field", message
    return "refused", ""
