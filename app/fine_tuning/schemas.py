"""Fine-tuning on the wire, in OpenAI's shapes."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, JsonValue

from app.errors import InvalidValue
from app.fine_tuning.methods import SETTINGS, Method, check_method
from app.fine_tuning.rules import (
    COMMON,
    Hyperparameters,
    check_hyperparameters,
    check_metadata,
)
from app.fine_tuning.start import JobRequest, Plan
from app.fine_tuning.tables import FineTuningCheckpoint, FineTuningEvent, FineTuningJob
from app.variants.rules import check_suffix
from app.wire import Strict, unix


class MethodOptions(Strict):
    """`model_changes` are made before training; only where the whole model is trained."""

    hyperparameters: dict[str, JsonValue] | None = None
    model_changes: Annotated[list[JsonValue], Field(max_length=16)] | None = None


class MethodIn(Strict):
    type: Literal["supervised", "dpo", "unlikelihood", "continued_pretraining", "pretraining", "reinforcement"]
    supervised: MethodOptions | None = None
    dpo: MethodOptions | None = None
    unlikelihood: MethodOptions | None = None
    continued_pretraining: MethodOptions | None = None
    pretraining: MethodOptions | None = None

    def options(self) -> MethodOptions:
        """Of the method named. Raises InvalidValue where options of another one stand."""
        if self.type not in SETTINGS:
            raise InvalidValue(f"This store trains with the methods {', '.join(SETTINGS)}.", param="method.type")
        for name in SETTINGS:
            if name != self.type and getattr(self, name) is not None:
                raise InvalidValue(f"The method is '{self.type}'.", param=f"method.{name}")
        return getattr(self, self.type) or MethodOptions()


class JobCreate(Strict):
    """`priority`: jobs of one account are taken in its order, larger first; other accounts are not affected."""

    model: str = Field(max_length=300)
    training_file: str = Field(max_length=64)
    validation_file: str | None = Field(default=None, max_length=64)
    method: MethodIn | None = None
    hyperparameters: dict[str, JsonValue] | None = None
    suffix: str | None = None
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    metadata: dict[str, str] | None = None
    integrations: list[JsonValue] | None = None
    priority: int = Field(default=0, ge=-100, le=100)

    def checked(self) -> tuple[Hyperparameters, Method]:
        """From `method`, or from the old top-level form. Raises InvalidValue, InvalidHyperparameter."""
        if self.method is None:
            return check_hyperparameters(self.hyperparameters or {}), Method()
        if self.hyperparameters:
            raise InvalidValue("Give the hyperparameters in 'method' only.", param="hyperparameters")
        options, type = self.method.options(), self.method.type
        given = options.hyperparameters or {}
        common = {name: value for name, value in given.items() if name in COMMON}
        own = {name: value for name, value in given.items() if name not in COMMON}
        method = check_method(type, own, options.model_changes)
        return check_hyperparameters(common, f"method.{type}.hyperparameters"), method

    def request(self) -> JobRequest:
        if self.integrations:
            raise InvalidValue("This store has no integrations.", param="integrations")
        hyperparameters, method = self.checked()
        return JobRequest(
            model=self.model,
            training_file=self.training_file,
            validation_file=self.validation_file,
            hyperparameters=hyperparameters,
            suffix=check_suffix(self.suffix) or None,
            seed=self.seed,
            metadata=check_metadata(self.metadata or {}),
            method=method,
            priority=self.priority,
        )


class JobOut(BaseModel):
    id: str
    object: str = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    status: str
    model: str
    fine_tuned_model: str | None
    organization_id: str
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    seed: int
    error: dict[str, Any] | None
    integrations: list[Any] = []
    metadata: dict[str, str]
    charge_micros: int | None
    held_micros: int
    cancel_requested: bool
    pause_requested: bool
    priority: int
    base_valid_loss: float | None
    evaluation: dict[str, Any] | None

    @classmethod
    def of(cls, job: FineTuningJob, names: dict[str, str]) -> Self:
        """`names`: variant id → model name."""
        return cls(
            id=job.id,
            created_at=unix(job.created_at),
            finished_at=unix(job.finished_at) if job.finished_at else None,
            estimated_finish=unix(job.estimated_finish) if job.estimated_finish else None,
            status=job.status,
            model=job.model,
            fine_tuned_model=names.get(job.variant_id or ""),
            organization_id=job.account_id,
            training_file=job.training_file_id,
            validation_file=job.validation_file_id,
            result_files=(job.result or {}).get("result_files", []),
            trained_tokens=job.trained_tokens,
            hyperparameters=job.hyperparameters,
            method=method_out(job),
            seed=job.seed,
            error=job.error,
            metadata=job.metadata_,
            charge_micros=job.charge_micros,
            held_micros=job.held_micros if job.finished_at is None else 0,
            cancel_requested=job.cancel_requested,
            pause_requested=job.pause_requested,
            priority=job.priority,
            base_valid_loss=(job.result or {}).get("base_valid_loss"),
            evaluation=evaluation_of(job.result or {}),
        )


def evaluation_of(result: dict[str, Any]) -> dict[str, Any] | None:
    """The base and the model on the held-out rows, and what both say to some of them; None without such rows."""
    if result.get("base_valid_loss") is None:
        return None
    sides = {
        side: {name.removeprefix(prefix): value for name, value in result.items() if name.startswith(prefix)}
        for side, prefix in (("before", "base_valid_"), ("after", "full_valid_"))
    }
    return {**sides, "samples": result.get("samples", [])}


def method_out(job: FineTuningJob) -> dict[str, Any]:
    """As OpenAI nests it."""
    settings, changes = job.method.get("settings", {}), job.method.get("model_changes")
    options = {"hyperparameters": {**job.hyperparameters, **settings}} | ({"model_changes": changes} if changes else {})
    return {"type": job.method["type"], job.method["type"]: options}


class EventOut(BaseModel):
    id: str
    object: str = "fine_tuning.job.event"
    created_at: int
    level: str
    message: str
    type: str
    data: dict[str, Any]

    @classmethod
    def of(cls, event: FineTuningEvent) -> Self:
        return cls(
            id=event.id,
            created_at=unix(event.created_at),
            level=event.level,
            message=event.message,
            type=event.type,
            data=event.data,
        )


class CheckpointOut(BaseModel):
    id: str
    object: str = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, Any]

    @classmethod
    def of(cls, checkpoint: FineTuningCheckpoint, names: dict[str, str]) -> Self:
        return cls(
            id=checkpoint.id,
            created_at=unix(checkpoint.created_at),
            fine_tuned_model_checkpoint=names[checkpoint.variant_id],
            fine_tuning_job_id=checkpoint.job_id,
            step_number=checkpoint.step,
            metrics=checkpoint.metrics,
        )


class EstimateOut(BaseModel):
    """At most this many tokens and micros; `seconds` of training once a worker has taken the job.

    `measured_jobs`: how many finished jobs of this base and method `seconds` and memory follow from; with 0 they are
    arithmetic for two ordinary CPU cores.
    """

    object: str = "fine_tuning.estimate"
    trained_tokens: int
    price_micros: int
    seconds: float
    measured_jobs: int
    peak_memory_bytes: int
    allowed_to_proceed: bool

    @classmethod
    def of(cls, plan: Plan, available_micros: int) -> Self:
        return cls(
            trained_tokens=plan.tokens,
            price_micros=plan.price,
            seconds=plan.expected.seconds,
            measured_jobs=plan.expected.jobs,
            peak_memory_bytes=plan.expected.memory_bytes,
            allowed_to_proceed=plan.price <= available_micros,
        )
