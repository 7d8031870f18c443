"""Rules of answers: errors and events of engines, under the requested name."""
