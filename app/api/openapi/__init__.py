"""The OpenAPI document: descriptions of fields, and examples of requests and responses."""
