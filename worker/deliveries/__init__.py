"""Delivery sender: brings adapters to delivery targets and checks what engines serve. `python -m worker.deliveries`."""
