"""Rules of access: scopes, audit actions, the networks that webhooks may reach."""
