"""Exports: a merged model, made by a child process."""
