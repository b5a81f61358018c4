"""What the tests share: children with a watchdog, sealed values, materializers that observe, and a model."""
