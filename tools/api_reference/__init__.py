"""`python -m tools.api_reference`: writes docs/reference and docs/errors.md from the OpenAPI document and the code.

`words` says a schema in words, `calls` an example request as curl and as the official client, `pages` puts both on a
page; `error_codes` is the list of what can go wrong. The page at /docs is made of the same words.
"""
