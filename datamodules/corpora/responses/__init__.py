"""Documents in which only some tokens are predicted: responses to prompts, and the assistant's turns of conversations."""
