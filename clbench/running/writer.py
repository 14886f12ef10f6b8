"""The observer that writes a run down in its folder."""

from torch import Tensor

from clbench.config.errors import RunError
from clbench.results.record import RunRecord
from clbench.results.result import Result
from clbench.running.folder import RunFolder
from clbench.running.observer import Observer
from clbench.running.packing import pack


class FolderWriter(Observer):
    """Writes a run down in its folder: run.json and the tables after each task, weights and state at the end."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def finished(self, weights: dict[str, Tensor]) -> None:
        """Write the final weights."""
        self.folder.save_model(pack(weights))

    def kept(self, state: bytes) -> None:
        """Write the final state."""
        self.folder.save_state(state)

    def written(self, record: RunRecord) -> None:
        """Write run.json, accuracy.csv and training.csv; raises RunError when it can't."""
        try:
            Result(record).write(self.folder.path)
        except OSError as error:
            raise RunError(f"{self.folder}: {error.strerror or error}; the results so far are kept") from None
