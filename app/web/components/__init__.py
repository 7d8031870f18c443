"""Parts that several screens use: tables, status pills, code tabs, charts, upload area, token view."""
