collect_ignore = ["scenarios"]  # they run in environments of their own, where nothing of ours is installed
