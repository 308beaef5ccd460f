"""The table as SQLAlchemy's users declare it: what the database fills in is left to it and fetched by RETURNING."""

from datetime import datetime

from sqlalchemy import BigInteger, DateTime, FetchedValue, Identity, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class UserRow(Base):
    __tablename__ = "user"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    fname: Mapped[str]
    lname: Mapped[str]
    email: Mapped[str]
    password_hash: Mapped[str] = mapped_column(deferred=True)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=FetchedValue())
    updated_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=FetchedValue(), onupdate=func.now()
    )

    __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012 - SQLAlchemy's own form
