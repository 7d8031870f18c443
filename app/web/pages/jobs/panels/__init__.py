"""The tabs of a job: each shows one subject, requested when it is opened and again after each change of the job."""
