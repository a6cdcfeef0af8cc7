"""What precedes a training process: reading files in this process, under the job's lease, heeding the same orders."""


class Halted(Exception):
    """The preparation was told to end; nothing of it needs to be kept."""


class Preparation:
    """Stands where the child will be (workers.fine_tuning.child.Charge)."""

    def __init__(self) -> None:
        self._ended = False

    def order(self, what: str) -> None:
        self._ended = True

    def hint(self, busy: bool) -> None:
        """It is too short to give way."""

    def measure(self) -> None:
        """Its memory is this process's."""

    def kill(self) -> None:
        self._ended = True

    def obey(self) -> None:
        """To be called now and then. Raises Halted."""
        if self._ended:
            raise Halted
