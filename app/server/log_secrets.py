"""Redacts tokens and stream keys in all log records: uvicorn's, libraries', our own."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

_REDACTED = "***"
_PATTERNS = (
    re.compile(r"(?i)(\btoken(?:=|%3D|\"\s*:\s*\"|'\s*:\s*'))[^&\s\"'#;,)]+"),  # URLs, JSON, dictionaries
    re.compile(r"(?i)(\bbearer\s+)[^\s\"',;)]+"),
    re.compile(r"(?i)(\bzoetrope-token[\"']?\s*[:,]\s*b?[\"']?)[^\s\"',;)]+"),  # WHIP's response header
    re.compile(r"(\bzoetrope-\d+=)[^;\s\"']+"),  # the page's cookie
    re.compile(
        r"(?i)(\brtmps?://[^\s/]+/(?:[^\s/\"']+/)?)[^\s\"',)]+"
    ),  # the stream key, with or without an application
    re.compile(r"(?i)(\b(?:rtmps?|srt|https?)://)[^\s/@\"']+(?=@)"),  # user and password
    re.compile(r"(?i)(\b(?:passphrase|streamid|stream_?key)(?:=|%3D|\"\s*:\s*\"|'\s*:\s*'))[^&\s\"'#;,)]+"),
)


class HideTokens(logging.Filter):
    """Replaces the given secrets, and anything that looks like a token, with ***. Lets every record pass."""

    def __init__(self, *secrets: str) -> None:
        super().__init__()
        self._secrets = tuple(secret for secret in secrets if secret)

    def clean(self, text: str) -> str:
        """`text` with secrets redacted."""
        for secret in self._secrets:
            text = text.replace(secret, _REDACTED)
        for pattern in _PATTERNS:
            text = pattern.sub(rf"\g<1>{_REDACTED}", text)
        return text

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact the message, its arguments (keeping their number, for uvicorn's formatter) and the traceback."""
        record.msg = self._clean_value(record.msg)
        if isinstance(record.args, tuple):
            record.args = tuple(self._clean_value(value) for value in record.args)
        elif record.args:
            record.args = {name: self._clean_value(value) for name, value in record.args.items()}
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = self.clean(logging.Formatter().formatException(record.exc_info))
        return True

    def _clean_value(self, value: object) -> object:
        if value is None or isinstance(value, int | float):
            return value
        text = str(value)
        cleaned = self.clean(text)
        return value if cleaned == text else cleaned


@contextmanager
def hidden_tokens(*secrets: str) -> Iterator[None]:
    """Redact every record of every logger in this process, including loggers created later."""
    hide = HideTokens(*secrets)
    before = logging.getLogRecordFactory()

    def make(*arguments: object, **named: object) -> logging.LogRecord:
        record: logging.LogRecord = before(*arguments, **named)
        hide.filter(record)
        return record

    logging.setLogRecordFactory(make)
    try:
        yield
    finally:
        logging.setLogRecordFactory(before)
