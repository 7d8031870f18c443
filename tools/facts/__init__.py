"""`make facts`: what a user of the service can see, as text files that `diff` compares."""
