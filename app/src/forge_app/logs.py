"""JSON logs: one object per line on stderr, so that standard output stays free for the commands' results."""

import json
import logging
import sys
from datetime import UTC, datetime

from forge_app.release import RELEASE_ID
from forge_app.request_id import current_request_id

# their own handlers would write lines that are not JSON
_SERVER_LOGGERS = ("uvicorn", "uvicorn.access", "uvicorn.error")


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object.

    Keys: time (UTC, ISO 8601), level, logger, message, request_id (or null), release; exception if any.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without a line break inside or at the end."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": current_request_id(),
            "release": RELEASE_ID,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logging(level: str) -> None:
    """Send every log line of this process, uvicorn's too, to stderr as JSON. `level` is a name like `info`.

    By hand, since logging.config would also close the handlers that gunicorn opened before.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in _SERVER_LOGGERS:
        logger = logging.getLogger(name)
        # one without handlers propagates already, or was switched off: uvicorn's way to write no access log
        if logger.handlers:
            logger.handlers = []
            logger.propagate = True
