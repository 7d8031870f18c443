"""`tunery up` and `tunery doctor`: the whole service on one machine, and checks of the machine."""
