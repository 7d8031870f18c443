"""What touches the machine, shared by API, worker and trainer: cgroups, CPU, directories of artifacts and models."""
