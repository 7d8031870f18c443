"""Rules of adapters and other artifacts: directories with manifests, exports, inference engines, space needed."""
