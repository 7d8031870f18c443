"""One training job on this worker: lease, preparation, trainer process, watchdog, records, publication."""
