"""What Prometheus reads: counts and durations, labelled by route template so that ids never become series."""

from prometheus_client import Counter, Histogram

REQUESTS = Counter("gptstore_http_requests_total", "HTTP requests answered.", ["method", "route", "status"])
REQUEST_SECONDS = Histogram("gptstore_http_request_seconds", "Seconds from request to last byte.", ["route"])
FIRST_TOKEN_SECONDS = Histogram(
    "gptstore_first_token_seconds",
    "Seconds from admission to the first token at the relay.",
    buckets=(0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 30, 60, 120),
)
TOKENS = Counter("gptstore_tokens_relayed_total", "Tokens handed on by the relay.")
GENERATIONS = Counter("gptstore_generations_total", "Generations that ended, by outcome.", ["outcome"])
