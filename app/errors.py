"""Every refusal the store can give, at a glance. A family states its HTTP status, a leaf its code."""

from typing import ClassVar


class AppError(Exception):
    """An expected refusal. `param` names the field at fault; `retry_after` is in seconds.

    A refusal that stays true when repeated is `permanent`: clients are told not to retry.
    """

    status: ClassVar[int]
    code: ClassVar[str]
    type: ClassVar[str] = "invalid_request_error"
    permanent: ClassVar[bool] = False

    def __init_subclass__(
        cls,
        status: int | None = None,
        code: str | None = None,
        type: str | None = None,
        permanent: bool | None = None,
    ) -> None:
        if status is not None:
            cls.status = status
        if code is not None:
            cls.code = code
        if type is not None:
            cls.type = type
        if permanent is not None:
            cls.permanent = permanent

    def __init__(self, message: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after


# 400: the request itself is wrong
class BadRequest(AppError, status=400, code="invalid_value"): ...


class InvalidValue(BadRequest, code="invalid_value"): ...


class InvalidJson(BadRequest, code="invalid_json"): ...


class UnknownParameter(BadRequest, code="unknown_parameter"): ...


class MissingParameter(BadRequest, code="missing_required_parameter"): ...


class InvalidCursor(BadRequest, code="invalid_cursor"): ...


class InvalidHost(BadRequest, code="invalid_host"): ...


class ContextLengthExceeded(BadRequest, code="context_length_exceeded"): ...


class UnsupportedContent(BadRequest, code="unsupported_content"): ...


class InvalidSchema(BadRequest, code="invalid_schema"): ...


class InvalidAmount(BadRequest, code="invalid_amount"): ...


class PriceBelowBase(BadRequest, code="price_below_base"): ...


class InvalidFilename(BadRequest, code="invalid_filename"): ...


class InvalidTrainingFile(BadRequest, code="invalid_training_file"): ...


class InvalidHyperparameter(BadRequest, code="invalid_hyperparameter"): ...


class UnsafeFormat(BadRequest, code="unsafe_format"): ...


class InvalidSafetensors(BadRequest, code="invalid_safetensors"): ...


class NonFiniteWeights(BadRequest, code="non_finite_weights"): ...


class InvalidAdapterConfig(BadRequest, code="invalid_adapter_config"): ...


class InvalidSignature(BadRequest, code="invalid_signature"): ...


# 401, 402, 403: who asks, with what means, with what right
class Unauthorized(AppError, status=401, code="invalid_api_key", type="authentication_error"): ...


class InvalidCredentials(Unauthorized, code="invalid_credentials"): ...


class PaymentRequired(AppError, status=402, code="insufficient_funds", type="insufficient_funds"): ...


class InsufficientFunds(PaymentRequired, code="insufficient_funds"): ...


class CardDeclined(PaymentRequired, code="card_declined"): ...


class Forbidden(AppError, status=403, code="forbidden", type="permission_error"): ...


class InsufficientScope(Forbidden, code="insufficient_scope"): ...


class ModelNotPurchased(Forbidden, code="model_not_purchased"): ...


class CsrfFailed(Forbidden, code="csrf_failed"): ...


# 404, 405: a foreign id and an unknown id read the same
class NotFound(AppError, status=404, code="not_found"): ...


class ModelNotFound(NotFound, code="model_not_found"): ...


class MethodNotAllowed(AppError, status=405, code="method_not_allowed"): ...


# 409: true as asked, not now; most stay true, so clients are told not to retry
class Conflict(AppError, status=409, code="conflict", permanent=True): ...


class AlreadyExists(Conflict, code="already_exists"): ...


class ListingUnavailable(Conflict, code="listing_unavailable"): ...


class AlreadyPurchased(Conflict, code="already_purchased"): ...


class PriceChanged(Conflict, code="price_changed"): ...


class RefundExceedsCharge(Conflict, code="refund_exceeds_charge"): ...


class JobNotCancellable(Conflict, code="job_not_cancellable"): ...


class JobNotPausable(Conflict, code="job_not_pausable"): ...


class JobNotResumable(Conflict, code="job_not_resumable"): ...


class ExportFailed(Conflict, code="export_failed"): ...


class InUse(Conflict, code="in_use"): ...


class IdempotencyInProgress(Conflict, code="idempotency_in_progress", permanent=False): ...


# 413, 415, 422: the shape of the body
class RequestTooLarge(AppError, status=413, code="request_too_large"): ...


class UnsupportedMediaType(AppError, status=415, code="unsupported_media_type"): ...


class UnsupportedEncoding(AppError, status=415, code="unsupported_encoding"): ...


class IdempotencyKeyReused(AppError, status=422, code="idempotency_key_reused"): ...


# 429: too much, or out of money for calls
class RateLimited(AppError, status=429, code="rate_limit_exceeded", type="rate_limit_error"): ...


class InsufficientQuota(AppError, status=429, code="insufficient_quota", type="insufficient_quota", permanent=True): ...


# 5xx: ours to mend, and only these three are ever induced on purpose
class Overloaded(AppError, status=503, code="overloaded", type="server_error"): ...


class Unavailable(AppError, status=503, code="unavailable", type="server_error"): ...


class GenerationFailed(AppError, status=500, code="generation_failed", type="server_error"): ...


class InsufficientStorage(AppError, status=507, code="insufficient_storage", type="server_error"): ...
