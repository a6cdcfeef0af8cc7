"""Why a job cannot go on."""


class Refused(Exception):
    """`code`, the message and `param` become the job's error, for its owner to read."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param
