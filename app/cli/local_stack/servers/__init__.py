"""PostgreSQL and Valkey as `tunery up` runs them: start, stop, sockets, unprivileged user."""
