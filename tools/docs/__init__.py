"""`python -m tools.docs`: builds the documentation's site into app/site, which the API serves at /docs.

`site` copies the pages of docs/, adds the generated ones, and has zensical make the HTML; `reference` are the generated
pages: the operations (`api_pages`, from the OpenAPI document), the commands and the errors.
"""
