"""The hottest reads (jobs, keys) on raw asynchronous connections, with one query for all reads that wait."""
