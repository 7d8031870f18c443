"""`tunery up` and `tunery doctor`: the whole service on one machine, and what is wrong with the machine."""
