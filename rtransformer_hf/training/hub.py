# SPDX-License-Identifier: Apache-2.0
"""What an error of the Hub means to who pushes to it."""


def reason(error: Exception) -> str:
    """What went wrong at the Hub and what helps, in a sentence without its full stop."""
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # of an upload in a thread of its own
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return (
            "the Hub asks for a token that it knows: `hf auth login` keeps one, HF_TOKEN names one, of the role write"
        )
    if status == 403:
        return (
            "the token may not write there; accepted: one of the role write, and a name of your own or of an "
            "organisation that lets you write"
        )
    text = str(error).strip().partition("\n")[0].rstrip(".")
    server_message = getattr(error, "server_message", None)
    return f"{type(error).__name__}: {text}" + (f" ({server_message})" if server_message else "")
