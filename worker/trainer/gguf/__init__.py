"""GGUF exports: conversion and quantization by llama.cpp, and a comparison of its answers with the merged model's."""
