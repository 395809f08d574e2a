"""Push an export to a repository of the Hugging Face hub, or of a compatible server."""

from __future__ import annotations

from pathlib import Path

from dept.errors import ConfigError


class NotPushed(OSError):
    """An export was written, but could not be sent."""


def check_name(repository: str) -> None:
    """Check the name of a repository before anything slow.

    Raises:
        ConfigError: the name is not valid.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        if repository.count("/") != 1:
            raise HFValidationError("it has no owner")
        validate_repo_id(repository)
    except HFValidationError:
        raise ConfigError(
            f"{repository!r} is no name of a repository: write owner/name with letters, digits, "
            f"single dots and hyphens, and underscores"
        ) from None


def push(folder: Path, repository: str, *, private: bool = False) -> str:
    """Send an export, its card included, as one commit.

    ``HF_ENDPOINT`` and ``HF_TOKEN`` set the server and the access token, as in ``huggingface_hub``.

    Args:
        folder: a directory that :func:`eval.export.export` wrote.
        repository: ``owner/name``; made if it does not exist.
        private: whether a new repository is private.

    Returns:
        Its address.

    Raises:
        NotPushed: with the reason and the fix; ``folder`` is unchanged.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        # None leaves it to the owner's default.
        made = api.create_repo(repository, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Export of a DEPT run"
        )
    # The client raises OSError (requests), ValueError and RuntimeError, the last around another.
    except (OSError, ValueError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        raise NotPushed(
            f"{_reason(cause, api.endpoint, repository)}; {folder} is whole, and "
            f"`huggingface-cli upload {repository} {folder}` sends it later"
        ) from error
    return str(made)


def _reason(error: BaseException, endpoint: str, repository: str) -> str:
    """Why nothing was sent, and what to do about it."""
    import requests
    from huggingface_hub import get_token
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids to send anything: unset it"
    if isinstance(error, (requests.ConnectionError, requests.Timeout)):
        return f"{endpoint} does not answer: look at the network, or at HF_ENDPOINT"
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status == 401 and get_token() is None:
        return f"{endpoint} asks for a token: set HF_TOKEN to one that may write {repository}"
    if status == 401:
        return f"{endpoint} does not take the token: set HF_TOKEN to a valid one"
    if status in (403, 404):
        return (
            f"the token may not write {repository}: set HF_TOKEN to one that may, or choose an "
            f"owner that it belongs to"
        )
    if status is not None and status >= 500:
        return f"{endpoint} failed (status {status}): try later"
    said = " ".join(str(error).split())[:200]
    return f"{endpoint} refuses {repository} ({said}): change what it names"
