"""What depends on the kind of the device: its functions, its memory, and what it does otherwise than another one."""
