"""`python -m tools.api_reference`: writes docs/reference and docs/errors.md from the OpenAPI document and the code.

`pages` writes the reference from the OpenAPI document with the texts and examples of `app.api.openapi`, as the page at
/docs does; `errors_page` writes docs/errors.md from the error classes and `app.domain.jobs.states.Reason`.
"""
