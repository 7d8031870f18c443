"""Rules of the queue: fair share, forecast, preemption, worker capacity."""
