# SPDX-License-Identifier: Apache-2.0
"""
How a command starts and ends: unusable input, Ctrl-C, and quiet imports. Commands import it first, and nothing else
does, because importing it changes the process: Ctrl-C and the warnings of other packages.
"""

import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from .errors import UsageError
from .stopping import hint, on_stop


def run_command(main: Callable[[], None]):
    """
    Runs a command to its end. Unusable input ends it with one line and exit code 1; Ctrl-C with one line, which says
    how to go on where `on_stop` has been told, and exit code 130.
    """
    on_stop(None)
    gc.enable()
    interrupted = []

    def interrupt(*_):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher passes the terminal's on: it comes twice
        interrupted.append(True)
        raise KeyboardInterrupt

    if "RANK" in os.environ:
        signal.signal(signal.SIGINT, interrupt)
    try:
        main()
    except SystemExit as end:
        if end.code in (0, None):  # --help: nothing has begun, and Python would take a second to free what it loaded
            sys.stdout.flush()
            os._exit(0)
        raise
    except UsageError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: error: {error}")
    except KeyboardInterrupt:
        stop()
    except Exception:
        if interrupted:  # what waited for another process, which was stopped first, has failed in its own way
            stop()
        raise


def stop():
    if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
        print(f"\n{Path(sys.argv[0]).name}: stopped.{hint()}", file=sys.stderr, flush=True)
    if "RANK" in os.environ:
        sys.stdout.flush()
        os._exit(130)  # at once: to leave its group, a process would wait for the others
    sys.exit(130)


def excepthook(error_type: type[BaseException], error: BaseException, traceback):
    """Ctrl-C while a command's imports are still under way ends it with one line, too."""
    if issubclass(error_type, KeyboardInterrupt):
        stop()
    sys.__excepthook__(error_type, error, traceback)


sys.excepthook = excepthook
# Transformers imports these packages where they are installed, whether or not a command uses them, and they warn of
# parts that were compiled for other machines.
for _package in ("bitsandbytes", "torchao", "torch.utils._pytree"):
    logging.getLogger(_package).setLevel(logging.ERROR)
# While a command's imports load, collecting garbage finds next to none and takes a third of the time.
if Path(getattr(sys.modules["__main__"], "__file__", None) or ".").resolve().parent.name == "scripts":
    gc.disable()  # until `run_command`
