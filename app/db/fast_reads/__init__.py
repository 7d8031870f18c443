"""The hottest reads (jobs, keys) on raw asynchronous connections, with coalescing of identical reads."""
