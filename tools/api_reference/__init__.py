"""`python -m tools.api_reference`: writes the generated pages of docs/reference.

`pages` writes docs/reference/api from the OpenAPI document with the texts and examples of `app.api.openapi`, as the
page at /docs does; `errors_page` writes docs/reference/errors.md from the error classes and
`app.domain.jobs.states.Reason`.
"""
