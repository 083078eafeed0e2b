# Copyright 2026 The rtransformer_hf authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
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
