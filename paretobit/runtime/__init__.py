"""Running a packed model: tokenizer, sampler, session and server. numpy at the heaviest, never torch."""
