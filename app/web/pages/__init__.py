"""The screens of the dashboard, one module or package per subject. Its import registers them."""

from app.web.pages import adapters, admin, base_models, convert, datasets, project, queue  # noqa: F401
from app.web.pages.jobs import compare, job, jobs, new_job, variants  # noqa: F401
