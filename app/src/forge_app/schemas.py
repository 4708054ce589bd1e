"""Bodies of requests and responses."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

# PostgreSQL's text cannot hold NUL; without this rule it would be an error of the server
_NO_NUL = r"^[^\x00]*$"


class ItemInput(BaseModel):
    """What a client sends to create or replace an item."""

    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=_NO_NUL)]
    description: Annotated[str, StringConstraints(max_length=10_000, pattern=_NO_NUL)] | None = None


class ItemOutput(BaseModel):
    """An item as stored."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    name: str
    description: str | None
    created_at: datetime
    updated_at: datetime


class Health(BaseModel):
    """Answer of /health."""

    status: str


class Ready(BaseModel):
    """Answer of /ready when the service can serve. secrets: ok, trouble, none or unknown."""

    status: str
    release: str
    secrets: str


class Version(BaseModel):
    """Answer of /version: which code answers, where."""

    release: str
    version: str
    environment: str
    host: str
    pid: int
    python: str
