"""Trial answers: an idle GPU slot answers small requests until it claims a job."""
