"""Keys and tokens of known makers, by the patterns of Yelp's detect-secrets. Nothing found is kept or asked about."""

import re
from collections import Counter
from typing import Any

from detect_secrets.plugins.aws import AWSKeyDetector
from detect_secrets.plugins.base import RegexBasedDetector
from detect_secrets.plugins.basic_auth import BasicAuthDetector
from detect_secrets.plugins.discord import DiscordBotTokenDetector
from detect_secrets.plugins.github_token import GitHubTokenDetector
from detect_secrets.plugins.gitlab_token import GitLabTokenDetector
from detect_secrets.plugins.jwt import JwtTokenDetector
from detect_secrets.plugins.mailchimp import MailchimpDetector
from detect_secrets.plugins.npm import NpmDetector
from detect_secrets.plugins.openai import OpenAIDetector
from detect_secrets.plugins.private_key import PrivateKeyDetector
from detect_secrets.plugins.pypi_token import PypiTokenDetector
from detect_secrets.plugins.sendgrid import SendGridDetector
from detect_secrets.plugins.slack import SlackDetector
from detect_secrets.plugins.square_oauth import SquareOAuthDetector
from detect_secrets.plugins.stripe import StripeDetector
from detect_secrets.plugins.telegram_token import TelegramBotTokenDetector
from detect_secrets.plugins.twilio import TwilioKeyDetector

from workers.datasets.checks import Numbered

DETECTORS: list[type[RegexBasedDetector]] = [
    AWSKeyDetector,
    BasicAuthDetector,
    DiscordBotTokenDetector,
    GitHubTokenDetector,
    GitLabTokenDetector,
    JwtTokenDetector,
    MailchimpDetector,
    NpmDetector,
    OpenAIDetector,
    PrivateKeyDetector,
    PypiTokenDetector,
    SendGridDetector,
    SlackDetector,
    SquareOAuthDetector,
    StripeDetector,
    TelegramBotTokenDetector,
    TwilioKeyDetector,
]
OWN = re.compile(r"\bgpts_[\w-]{8,32}_[\w-]{32,}")
# Every pattern above needs a run like one of these; most texts have none and are let through at once.
WORTH_A_LOOK = re.compile(r"[A-Za-z0-9_/+=.-]{20}|://|-----BEGIN|PRIVATE KEY|PuTTY|//|:_|aws", re.IGNORECASE)


class Secrets:
    """Counts by maker."""

    def __init__(self) -> None:
        self._patterns = [(each.secret_type, list(each.denylist)) for each in DETECTORS]
        self._patterns.append(("GPT Store key", [OWN]))
        self._makers: Counter[str] = Counter()

    def codes(self, numbered: Numbered) -> list[str]:
        text = numbered.text
        if not WORTH_A_LOOK.search(text):
            return []
        found = {maker for maker, patterns in self._patterns if any(each.search(text) for each in patterns)}
        self._makers.update(found)
        return ["secret"] if found else []

    def summary(self) -> dict[str, Any]:
        return {"makers": dict(self._makers)}
