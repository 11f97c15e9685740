"""What is optimised: models, the objective of each stage, schedules, dropout."""
