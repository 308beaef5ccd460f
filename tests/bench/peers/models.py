"""What the peers share: the models of the contract, as a pydantic user writes them, and the hash of a password.

The rules of a name and a password are the contract's, in pydantic's own words, so that no peer is slowed by
validators in Python. A generated id and the two times come from the table's defaults, as they do for ours.
"""

import os
from datetime import datetime
from typing import Annotated

from argon2 import PasswordHasher
from pydantic import BaseModel, ConfigDict, EmailStr, Field, StringConstraints

DATABASE_URL = os.environ["DATABASE_URL"]  # postgresql://…

Name = Annotated[str, StringConstraints(min_length=1, max_length=100, strip_whitespace=True)]
Password = Annotated[str, StringConstraints(min_length=8, max_length=128)]
PageSize = Annotated[int, Field(ge=1, le=1000)]

# Argon2id with the same parameters as ours. Its C code lets other threads run.
hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)


class NewUser(BaseModel):
    fname: Name
    lname: Name
    email: EmailStr
    password: Password


class UserChange(BaseModel):
    fname: Name | None = None
    lname: Name | None = None
    email: EmailStr | None = None


class User(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    fname: str
    lname: str
    email: str
    created_at: datetime
    updated_at: datetime
