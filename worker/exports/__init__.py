"""Exports: a merged model or a GGUF file, made by a child process."""
