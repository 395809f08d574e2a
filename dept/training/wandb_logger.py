"""Weights & Biases, online or offline, in runs with ``autoresume``."""

from __future__ import annotations

from typing import Any

from composer.loggers import WandBLogger


class WandB(WandBLogger):
    """Composer's logger, which reports that it has no checkpoint if it cannot have one.

    With ``autoresume`` Composer asks each logger for the newest checkpoint before the first batch.
    Its own W&B logger then fails a run in offline mode, and asks the server even if artifacts are
    never sent.
    """

    def download_file(self, remote_file_name: str, *arguments: Any, **options: Any) -> None:
        """Download a file from W&B.

        Args:
            remote_file_name: name of the file in W&B.
            arguments: further positional arguments of Composer's ``WandBLogger.download_file``.
            options: its named arguments.

        Raises:
            FileNotFoundError: there is no such file.
        """
        is_offline = not self.entity
        if is_offline or not self._log_artifacts:
            raise FileNotFoundError(f"{remote_file_name} is not in W&B")
        super().download_file(remote_file_name, *arguments, **options)
