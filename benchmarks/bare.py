"""The baseline for reads: a `def` route of FastAPI with one SELECT by primary key, no key, no ETag."""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI
from sqlalchemy import create_engine, text

engine = create_engine(os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://"), pool_size=40)
app = FastAPI()


@app.get("/jobs/{job_id}")
def read_job(job_id: str) -> Any:
    with engine.connect() as connection:
        row = connection.execute(text("SELECT id, state, progress FROM jobs WHERE id = :id"), {"id": job_id}).one()
    return {"id": row.id, "status": row.state, "progress": row.progress}
