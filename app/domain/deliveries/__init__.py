"""Rules of delivery targets, deliveries of adapters, and the check of what a target serves."""
