"""Exports: a merged model, made by a process of its own."""
