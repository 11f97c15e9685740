"""The training of a stage: models, adapters, the loss, schedules, early stopping, sharding and compilation."""
