"""What was measured: `Result` rows, and the report that is a pure function of them."""
