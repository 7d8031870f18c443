"""`tunery import openai`: read an organization's fine-tuning files and jobs at OpenAI, and recreate the jobs here."""
