"""The API reference, made of the OpenAPI document: `python -m app.api.reference` writes it into docs/.

`words` says a schema in words, `calls` an example request as curl and as the official client, `pages` puts both on a
page; `error_codes` is the list of what can go wrong. The page at /docs is made of the same words.
"""
