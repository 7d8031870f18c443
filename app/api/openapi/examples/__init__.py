"""Examples of requests and responses in the OpenAPI document; a test sends each of them to the service."""
