"""`tunery mcp`: an MCP server for agents, a client of the public API."""
